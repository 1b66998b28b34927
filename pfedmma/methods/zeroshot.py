"""CLIP as it comes (Radford et al. 2021): nothing is trained, nothing travels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.towers import Stem
from pfedmma.methods.base import State, cosine_logits, cross_entropy


@dataclass(frozen=True)
class ZeroShot:
    """Cosines of the frozen towers' features. Its state is one empty tensor, so that it still has a client axis."""

    backbone: Backbone
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"nothing": (0,)})
    exchange: dict[str, str] = field(default_factory=dict)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"nothing": torch.zeros(0)}

    def image_stem(self, pixels: Tensor) -> Stem:
        return self.backbone.image_stem(pixels, self.backbone.visual.depth + 1)

    def text_stem(self, prompts: Prompts) -> Stem:
        return self.backbone.text_stem(prompts, self.backbone.text.depth + 1)

    def image_features(self, state: State, stem: Stem) -> Tensor:
        clients = len(state["nothing"])
        return F.normalize(self.backbone.visual.features(stem.output).float(), dim=-1).unflatten(0, (clients, -1))

    def text_features(self, state: State, stem: Stem) -> Tensor:
        features = F.normalize(self.backbone.text.features(stem.output).float(), dim=-1)
        return features.expand(len(state["nothing"]), *features.shape)

    def logits(self, state: State, images: Tensor, texts: Tensor) -> Tensor:
        return cosine_logits(images, texts, self.backbone.logit_scale)

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return cross_entropy(self.logits(state, images, texts), labels, weights)
