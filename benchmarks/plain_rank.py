"""The plain path of any method: one client at a time, on towers without the shortcuts of this project, everything computed anew.

What the method adds to CLIP is its own code; what is left out is what the engine and the towers spare: prompts go through all tokens of
the text tower's reach, the last block works on all of them and not on the pooled one alone, and every step encodes its prompts from their
token ids on and prepares what else stays the same while a client trains, as the frozen blocks below the first trained tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from one_rank import OneRank, Setting
from torch import Tensor

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.stems import StemCache, TowerStem
from pfedmma.clip.towers import Places, TextTower, Tower, VisualTower, take
from pfedmma.engine.batches import Batches
from pfedmma.methods.forward import Forward


class AllTokens(Tower):
    """A tower whose last block works on all tokens; the pooled one is taken behind it."""

    def stem(self, x: Tensor, pool: Tensor | int | None, blocks: int) -> TowerStem:
        return dataclasses.replace(super().stem(x, None, blocks), pool=pool)

    def finish(self, stem: TowerStem, places: Places) -> Tensor:
        x = super().finish(dataclasses.replace(stem, pool=None), places)
        return x if stem.pool is None else take(x, stem.pool)


class PlainVisual(VisualTower, AllTokens):
    """The image tower."""


class PlainText(TextTower, AllTokens):
    """The text tower, whose prompts have all tokens that it reads."""

    def lengths(self, tokens: Tensor) -> list[int]:
        return [tokens.shape[1]] * len(tokens)


def plain(backbone: Backbone, clip: Any) -> Backbone:
    """The same frozen CLIP, made of the open_clip model ``clip``, without shortcuts."""
    text, pools = (clip if hasattr(clip, "transformer") else clip.text), backbone.text
    towers = PlainVisual(clip.visual, backbone.dtype), PlainText(text, pools.pool_type, pools.eos_id, backbone.dtype)
    return dataclasses.replace(backbone, visual=towers[0], text=towers[1])


class PlainRank(OneRank):
    """One client of a method on a `plain` backbone."""

    def __init__(self, setting: Setting, device: torch.device, backbone: Backbone) -> None:
        super().__init__(setting, device, backbone)

    def step(self, clients: int = 1) -> Callable[[], Tensor]:
        given, others, work = self.inputs(1), self.given(1), self.training.batches.work

        def step() -> Tensor:
            forward = Forward.from_prompts(self.method, self.template, self.base)
            fixed = forward.fixed(self.layout.views(given.params), others)
            training = dataclasses.replace(self.training, batches=Batches(forward, self.pixels, work))
            return training.step(given.params, given.state, fixed, given.batch, given.scale)

        return step

    def evaluation_of_one(self) -> Callable[[], object]:
        """The test of one client on both sets."""
        return self.evaluation(1, 1, StemCache(0.0))
