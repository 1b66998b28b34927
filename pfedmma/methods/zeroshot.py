"""CLIP as it comes (Radford et al. 2021, arXiv 2103.00020): nothing is trained, nothing travels, all clients answer alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.stems import Features, Stem, TowerStem
from pfedmma.methods.base import Entry, Method
from pfedmma.stack.rules import State


@dataclass(frozen=True)
class ZeroShot(Method):
    """Cosines of the frozen towers' features. ``beside``: a method whose stems of images serve here, too."""

    beside: Method | None = None

    @classmethod
    def beside_method(cls, method: Method) -> ZeroShot:
        """Zero-shot CLIP on the stems of images that ``method`` makes anyway, wherever the frozen tower goes on from them."""
        return cls(method.backbone, method if _leads_to_frozen_features(method) else None)

    def image_stem(self, pixels: Tensor) -> Stem:
        return super().image_stem(pixels) if self.beside is None else self.beside.image_stem(pixels)

    def image_features(self, state: State, stem: Any) -> Tensor:
        return super().image_features(state, self.backbone.finished(stem) if isinstance(stem, TowerStem) else stem)


def _leads_to_frozen_features(method: Method) -> bool:
    """Whether the frozen tower makes of a stem of the method what it makes of the pixels: tried on one image of noise."""
    backbone = method.backbone
    size = backbone.preprocess.size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(backbone.device)
    with torch.no_grad(), backbone.autocast():
        stem = method.image_stem(pixels)
        if not isinstance(stem, (Features, TowerStem)):
            return False
        found = backbone.finished(stem) if isinstance(stem, TowerStem) else stem
        return torch.equal(found.value, backbone.image_features(pixels).value)


def _build(settings: Any, backbone: Backbone) -> ZeroShot:
    return ZeroShot(backbone)


ENTRIES = (Entry("zeroshot", _build, trains=False),)
