"""The adapter family: one class, told apart by what is exchanged.

``pfedmma`` (arXiv 2507.05394) averages the projection shared by both towers and keeps the rest private; ``fedavg_mma`` averages
everything (McMahan et al. 2017); ``local`` exchanges nothing.

Deliberately unlike the released code: the optimizer state is each client's own, text features are always computed from the
client's current adapters, and the last round's model is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.adapters.multimodal import AdapterSpec, adapted_features
from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.towers import Stem
from pfedmma.errors import UserError
from pfedmma.methods.base import State, cosine_logits, cross_entropy

PRESETS: dict[str, Callable[[str], bool]] = {  # method name -> is this tensor exchanged?
    "pfedmma": lambda name: name.startswith("shared."),
    "local": lambda name: False,
    "fedavg_mma": lambda name: True,
}


def exchange_of(preset: str, spec: AdapterSpec) -> dict[str, str]:
    """The exchange map of a preset: tensor name -> rule."""
    return {name: "mean" for name in spec.shapes() if PRESETS[preset](name)}


@dataclass(frozen=True)
class MultiModalAdapters:
    """Adapters in both towers; the tensors in ``exchange`` are averaged, all others private."""

    backbone: Backbone
    spec: AdapterSpec
    exchange: dict[str, str]

    @classmethod
    def preset(cls, config, backbone: Backbone) -> MultiModalAdapters:
        """The method that a `pfedmma.methods.MethodConfig` describes."""
        depth = min(backbone.visual.depth, backbone.text.depth)
        blocks = config.blocks or (8 if depth >= 12 else max(1, depth // 2))
        if blocks > depth:
            raise UserError(f"method.blocks: {backbone.name} has only {depth} blocks in its shallower tower, fewer than {blocks}")
        spec = AdapterSpec.for_backbone(
            backbone, blocks, dim=config.dim, scale=config.scale, activation=config.activation, rescale=config.rescale
        )
        return cls(backbone, spec, exchange_of(config.name, spec))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.spec.shapes()

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self.spec.initial(generator)

    def image_stem(self, pixels: Tensor) -> Stem:
        return self.backbone.image_stem(pixels, self.spec.first("visual"))

    def text_stem(self, prompts: Prompts) -> Stem:
        return self.backbone.text_stem(prompts, self.spec.first("text"))

    def image_features(self, state: State, stem: Stem) -> Tensor:
        return F.normalize(adapted_features(self.backbone, self.spec, state, stem, "visual"), dim=-1)

    def text_features(self, state: State, stem: Stem) -> Tensor:
        clients = next(iter(state.values())).shape[0]
        return F.normalize(adapted_features(self.backbone, self.spec, state, stem.repeat(clients), "text"), dim=-1)

    def logits(self, state: State, images: Tensor, texts: Tensor) -> Tensor:
        return cosine_logits(images, texts, self.backbone.logit_scale)

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return cross_entropy(self.logits(state, images, texts), labels, weights)
