"""The multi-modal adapter of pFedMMA (arXiv 2507.05394): Up( act( S( act( Down(h) ) ) ) ), S shared by both towers.

Shape legend: C clients, M rows (sequences x tokens) of one client, W width, r adapter dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.clip.stems import TowerStem
from pfedmma.clip.towers import Places
from pfedmma.stack.linear import kaiming_normal_fan_out, linear

TOWERS = ("visual", "text")
PARTS = frozenset({*TOWERS, "down", "up", "shared"})  # the words of tensor names
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True)
class AdapterSpec:
    """Where the adapters of a model sit and how large they are.

    ``pairs`` are (visual block, text block), counted from 1, lowest first; the towers are paired from the top, so that
    towers of unequal depth share S between blocks of equal distance from the output. A tower of width 0 has no adapters.
    """

    pairs: tuple[tuple[int, int], ...]
    visual_width: int
    text_width: int
    dim: int = 32
    scale: float = 0.001
    activation: str = "relu"
    rescale: bool = True

    @classmethod
    def for_backbone(cls, backbone: Backbone, blocks: int, towers: str = "both", **options) -> AdapterSpec:
        """Adapters in the top ``blocks`` blocks of ``towers``: ``both``, ``visual`` or ``text``."""
        depths = backbone.visual.depth, backbone.text.depth
        pairs = tuple((depths[0] - k, depths[1] - k) for k in reversed(range(blocks)))
        visual, text = (getattr(backbone, name).width if towers in ("both", name) else 0 for name in TOWERS)
        return cls(pairs, visual, text, **options)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]], **options) -> AdapterSpec:
        """The spec whose `shapes` these are; raises ValueError if there is none."""
        blocks = {part: sorted({int(n.split(".")[1]) for n in shapes if n.startswith(f"{part}.")}) for part in ("shared", *TOWERS)}
        try:
            # S goes by the visual tower's number; a tower without adapters leaves no names behind.
            pairs = tuple(zip(blocks["visual"] or blocks["shared"], blocks["text"] or blocks["shared"], strict=True))
            dim, _ = shapes[f"shared.{pairs[0][0]}.weight"]
            if not (blocks["visual"] or blocks["text"]):
                raise ValueError("no tower has any")
            visual_width, text_width = (
                shapes[f"{tower}.{first}.down.weight"][1] if blocks[tower] else 0 for tower, first in zip(TOWERS, pairs[0], strict=True)
            )
            ends = [(pairs[0][k], pairs[-1][k]) for k, tower in enumerate(TOWERS) if blocks[tower]]
            if dim < 1 or any(first < 1 or last - first + 1 != len(pairs) for first, last in ends):
                raise ValueError("they must have a dimension, and sit in blocks in a row that count from 1")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"the tensor names are not those of paired adapters ({error})") from None
        spec = cls(pairs, visual_width, text_width, dim, **options)
        wanted = spec.shapes()
        wrong = sorted(n for n in wanted.keys() | shapes.keys() if tuple(shapes.get(n, ())) != wanted.get(n))
        if wrong:
            raise ValueError(f"tensor '{wrong[0][:60]}' is {list(shapes.get(wrong[0], ()))}, not {list(wanted.get(wrong[0], ()))}")
        return spec

    def first(self, tower: str) -> int:
        """The lowest block of ``tower`` that has an adapter."""
        return self.pairs[0][0 if tower == "visual" else 1]

    def has(self, tower: str) -> bool:
        """Whether ``tower`` has adapters."""
        return (self.visual_width if tower == "visual" else self.text_width) > 0

    def frozen_blocks(self, backbone: Backbone, tower: str) -> int:
        """How many blocks of ``tower`` compute the same for every client: up to the first adapter, its block's own part included."""
        return self.first(tower) if self.has(tower) else getattr(backbone, tower).depth

    def shared_number(self, tower: str, block: int) -> int:
        """The number under which the S of this block is stored: the visual tower's block of the pair."""
        if tower == "visual":
            return block
        return next(visual for visual, text in self.pairs if text == block)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of one client, in the orientation of `torch.nn.Linear` (weight [out, in])."""
        shapes: dict[str, tuple[int, ...]] = {}
        for tower, width, side in (("visual", self.visual_width, 0), ("text", self.text_width, 1)):
            for pair in self.pairs if width else ():
                name = f"{tower}.{pair[side]}"
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
        x = ACTIVATIONS[self.activation](self.shared_output(tensors, tower, block, normed))
        x = _layer(tensors, f"{tower}.{block}.up", x)
        x = _scale_value(x, self.scale) if self.rescale else x * self.scale
        return x.view(normed.shape)

    def shared_output(self, tensors: Mapping[str, Tensor], tower: str, block: int, normed: Tensor) -> Tensor:
        """What S of ``block`` gives, before the activation, of `__call__`'s arguments: [C,N*T,r]."""
        clients = next(iter(tensors.values())).shape[0]
        x = normed.reshape(clients, -1, normed.shape[-1])
        if self.rescale:
            x = _scale_gradient(x, self.scale)
        x = ACTIVATIONS[self.activation](_layer(tensors, f"{tower}.{block}.down", x))
        return _layer(tensors, f"shared.{self.shared_number(tower, block)}", x)


def adapted_features(
    backbone: Backbone, spec: AdapterSpec, tensors: Mapping[str, Tensor], stem: TowerStem | PromptStem, name: str
) -> Tensor:
    """Features of the tower ``name`` with adapters in place, fp32, not normalised: stem of C*N sequences -> [C,N,D]."""
    tower = getattr(backbone, name)
    places = Places(output=lambda block, normed: spec(tensors, name, block, normed)) if spec.has(name) else Places()
    x = tower.finish(stem, places)
    clients = next(iter(tensors.values())).shape[0]
    return tower.features(x).float().unflatten(0, (clients, -1))


def shared_outputs(backbone: Backbone, spec: AdapterSpec, tensors: Mapping[str, Tensor], stem: TowerStem) -> Tensor | None:
    """What S gives in the highest adapted block of the image tower: stem of C*N images -> [C,N,r]; None where that tower has no adapters.

    Of the pooled token; of a tower that averages its tokens, the mean over them.
    """
    if not spec.has("visual"):
        return None
    found: list[Tensor] = []

    def output(block: int, normed: Tensor) -> Tensor:
        if block == spec.pairs[-1][0]:
            found.append(spec.shared_output(tensors, "visual", block, normed).unflatten(1, (-1, normed.shape[1])))
        return spec(tensors, "visual", block, normed)

    backbone.visual.finish(stem, Places(output=output))
    return found[0].mean(dim=2)


def _layer(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


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
