"""The adapter family: one class, told apart by what is exchanged.

``pfedmma`` (arXiv 2507.05394) averages the projection shared by both towers and keeps the rest private; ``fedavg_mma`` averages
everything (McMahan et al. 2017, arXiv 1602.05629); ``local`` exchanges nothing. They are presets of ``method.exchange``.

Deliberately unlike the released code: the optimizer state is each client's own, text features are always computed from the
client's current adapters, and the last round's model is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.stems import TowerStem
from pfedmma.methods.adapters.multimodal import PARTS, AdapterSpec, adapted_features
from pfedmma.methods.base import Entry, Method, count
from pfedmma.stack.rules import MEAN, State
from pfedmma.system.errors import UserError

PRESETS = {"pfedmma": ("shared",), "local": ("none",), "fedavg_mma": ("all",)}


def exchange_of(what: Sequence[str], spec: AdapterSpec) -> dict[str, str]:
    """Tensor name -> rule for ``what`` travels: ``none``, ``all``, or parts, each by itself or several joined by "+".

    A part is ``shared``, a tower, ``down`` or ``up``, or both as in ``visual.down``.

    Raises:
        UserError: a part that there is none of.
    """
    parts = [part for item in what for part in item.split("+")]
    if parts == ["none"]:
        return {}
    shapes = spec.shapes()
    if parts == ["all"]:
        return dict.fromkeys(shapes, MEAN)
    chosen: dict[str, str] = {}
    for part in parts:
        words = set(part.strip().split("."))
        found = [name for name in shapes if words <= set(name.split("."))]
        if not found or not words <= PARTS:
            raise UserError(
                f"method.exchange: '{part}' is no part of the adapters; write none, all, or parts joined by + out of "
                f"shared, visual.down, visual.up, text.down, text.up (or visual, text, down, up for two of these)"
            )
        chosen |= dict.fromkeys(found, MEAN)
    return chosen


@dataclass(frozen=True)
class MultiModalAdapters(Method):
    """Adapters in the towers; the tensors in ``what`` (see `exchange_of`) are averaged, all others private."""

    spec: AdapterSpec
    what: tuple[str, ...]

    @classmethod
    def from_settings(cls, config: Any, backbone: Backbone) -> MultiModalAdapters:
        """The method that a `pfedmma.methods.registry.MethodConfig` describes; one without a preset exchanges S."""
        depth = min(backbone.visual.depth, backbone.text.depth)
        blocks = config.blocks or (8 if depth >= 12 else max(1, depth // 2))
        if blocks > depth:
            raise UserError(f"method.blocks: {backbone.name} has only {depth} blocks in its shallower tower, fewer than {blocks}")
        spec = AdapterSpec.for_backbone(
            backbone, blocks, config.towers, dim=config.dim, scale=config.scale, activation=config.activation, rescale=config.rescale
        )
        what = config.exchange or PRESETS.get(config.name, PRESETS["pfedmma"])
        exchange_of(what, spec)  # refuses what cannot be
        return cls(backbone, spec, what)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.spec.shapes()

    @property
    def exchange(self) -> dict[str, str]:
        return exchange_of(self.what, self.spec)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self.spec.initial(generator)

    def image_stem(self, pixels: Tensor) -> TowerStem:
        return self.backbone.image_stem(pixels, self.spec.frozen_blocks(self.backbone, "visual"))

    def text_stem(self, prompts: Prompts) -> TowerStem:
        return self.backbone.text_stem(prompts, self.spec.frozen_blocks(self.backbone, "text"))

    def image_features(self, state: State, stem: TowerStem) -> Tensor:
        return F.normalize(adapted_features(self.backbone, self.spec, state, stem, "visual"), dim=-1)

    def text_features(self, state: State, stem: TowerStem) -> Tensor:
        return F.normalize(adapted_features(self.backbone, self.spec, state, stem.repeat(count(state)), "text"), dim=-1)


ENTRIES = tuple(Entry(name, MultiModalAdapters.from_settings, adapters=True) for name in PRESETS)
