"""The multi-modal adapter of pFedMMA (arXiv 2507.05394): Up( act( S( act( Down(h) ) ) ) ), S shared by both towers.

Shape legend: C clients, M rows (sequences x tokens) of one client, W width, r adapter dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.adapters.stacked import kaiming_normal_fan_out, linear
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.towers import Stem

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True)
class AdapterSpec:
    """Where the adapters of a model sit and how large they are.

    ``pairs`` are (visual block, text block), counted from 1, lowest first; the towers are paired from the top, so that
    towers of unequal depth share S between blocks of equal distance from the output.
    """

    pairs: tuple[tuple[int, int], ...]
    visual_width: int
    text_width: int
    dim: int = 32
    scale: float = 0.001
    activation: str = "relu"
    rescale: bool = True

    @classmethod
    def for_backbone(cls, backbone: Backbone, blocks: int, **options) -> AdapterSpec:
        """Adapters in the top ``blocks`` blocks of both towers."""
        depths = backbone.visual.depth, backbone.text.depth
        pairs = tuple((depths[0] - k, depths[1] - k) for k in reversed(range(blocks)))
        return cls(pairs, backbone.visual.width, backbone.text.width, **options)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]], **options) -> AdapterSpec:
        """The spec whose `shapes` these are; raises ValueError if there is none."""
        blocks = {tower: sorted({int(n.split(".")[1]) for n in shapes if n.startswith(f"{tower}.")}) for tower in ("visual", "text")}
        try:
            pairs = tuple(zip(blocks["visual"], blocks["text"], strict=True))
            dim, visual_width = shapes[f"visual.{pairs[0][0]}.down.weight"]
            _, text_width = shapes[f"text.{pairs[0][1]}.down.weight"]
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"the tensor names are not those of paired adapters ({error})") from None
        spec = cls(pairs, visual_width, text_width, dim, **options)
        wanted = spec.shapes()
        wrong = sorted(n for n in wanted.keys() | shapes.keys() if tuple(shapes.get(n, ())) != wanted.get(n))
        if wrong:
            raise ValueError(f"tensor {wrong[0]} is {list(shapes.get(wrong[0], ()))}, not {list(wanted.get(wrong[0], ()))}")
        return spec

    def first(self, tower: str) -> int:
        """The lowest block of ``tower`` that has an adapter."""
        return self.pairs[0][0 if tower == "visual" else 1]

    def shared_number(self, tower: str, block: int) -> int:
        """The number under which the S of this block is stored: the visual tower's block of the pair."""
        if tower == "visual":
            return block
        return next(visual for visual, text in self.pairs if text == block)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of one client, in the orientation of `torch.nn.Linear` (weight [out, in])."""
        shapes: dict[str, tuple[int, ...]] = {}
        for tower, width, place in (("visual", self.visual_width, 0), ("text", self.text_width, 1)):
            for pair in self.pairs:
                name = f"{tower}.{pair[place]}"
                shapes[f"{name}.down.weight"], shapes[f"{name}.down.bias"] = (self.dim, width), (self.dim,)
                shapes[f"{name}.up.weight"], shapes[f"{name}.up.bias"] = (width, self.dim), (width,)
        for visual, _ in self.pairs:
            shapes[f"shared.{visual}.weight"], shapes[f"shared.{visual}.bias"] = (self.dim, self.dim), (self.dim,)
        return shapes

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Kaiming-normal weights (fan_out, relu gain) and zero biases; the up-projection is not zero."""
        return {
            name: kaiming_normal_fan_out(shape, generator) if len(shape) == 2 else torch.zeros(shape)
            for name, shape in self.shapes().items()
        }

    def __call__(self, tensors: Mapping[str, Tensor], tower: str, block: int, normed: Tensor) -> Tensor:
        """alpha * A(normed) at the output of ``block`` (the adapter's place in the tower).

        Args:
            tensors: {name: [C, *shape]}.
            normed: LN1 of the block's input [C*N, T, W].
        """
        clients = next(iter(tensors.values())).shape[0]
        shared, own = f"shared.{self.shared_number(tower, block)}", f"{tower}.{block}"
        act = ACTIVATIONS[self.activation]

        def layer(x: Tensor, name: str) -> Tensor:
            return linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

        x = normed.reshape(clients, -1, normed.shape[-1])
        if self.rescale:
            x = _scale_gradient(x, self.scale)
        x = layer(act(layer(act(layer(x, f"{own}.down")), shared)), f"{own}.up")
        x = _scale_value(x, self.scale) if self.rescale else x * self.scale
        return x.view(normed.shape)


def adapted_features(backbone: Backbone, spec: AdapterSpec, tensors: Mapping[str, Tensor], stem: Stem, name: str) -> Tensor:
    """Features of the tower ``name`` with adapters in place, fp32, not normalised: stem of C*N sequences -> [C,N,D]."""
    tower = getattr(backbone, name)
    x = tower.finish(stem, spec.first(name), lambda block, normed: spec(tensors, name, block, normed))
    clients = next(iter(tensors.values())).shape[0]
    return tower.features(x).float().unflatten(0, (clients, -1))


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by ``factor``."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.factor, None


class _ScaleValue(torch.autograd.Function):
    """Multiplication by ``factor`` whose gradient is the identity's."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        return x * factor

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad, None


# The gradient rescale of the released code (not in the paper): the adapter's weights receive their gradient as if alpha
# were 1, while what flows through the adapter back to x stays multiplied by alpha. Written as two functions that together
# multiply by alpha once, rather than by alpha and 1/alpha, so that half precision loses nothing.
def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    return _ScaleGradient.apply(x, factor)


def _scale_value(x: Tensor, factor: float) -> Tensor:
    return _ScaleValue.apply(x, factor)
