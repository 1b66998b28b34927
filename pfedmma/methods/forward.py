"""The one driver of a method's forward pass, in training, evaluation, prediction and exported clients alike.

    stems -> what stays fixed -> features of texts and images -> logits or losses

Each pass runs in mixed precision by itself: autocast keeps low-precision copies of trained tensors until it is left, so it must not reach
from one pass to the next.

Shape legend: C clients, B images a client, N images, K classes, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfedmma.clip.stems import Stem
from pfedmma.methods.base import Method
from pfedmma.methods.prompts import require_told_apart
from pfedmma.stack.rules import Given, State


@dataclass(frozen=True)
class Forward:
    """A method on the prompts of the ``classes``. ``text_stem``: what follows from the prompts alone."""

    method: Method
    classes: tuple[str, ...]
    text_stem: Any

    @classmethod
    def from_prompts(cls, method: Method, template: str, names: Sequence[str]) -> Forward:
        """The method on the class prompts ``template`` of ``names``; a `UserError` where two of them are encoded alike."""
        prompts = method.backbone.prompts(template, tuple(names))
        require_told_apart(prompts.names, prompts.tokens)
        with method.backbone.autocast():
            return cls(method, tuple(names), method.text_stem(prompts))

    @property
    def device(self) -> torch.device:
        return self.method.backbone.device

    @torch.no_grad()
    def fixed(self, state: State, given: Given) -> dict[str, Tensor]:
        """What stays the same while clients of that state train, or are tested: further entries of it."""
        with self.method.backbone.autocast():
            return self.method.fixed(state, given, self.text_stem)

    @torch.no_grad()
    def image_stem(self, pixels: Tensor) -> Stem:
        """[N,3,S,S] normalised pixels -> what follows from them alone."""
        with self.method.backbone.autocast():
            return self.method.image_stem(pixels)

    def text_features(self, state: State) -> Tensor:
        """[C,K,...] of each client."""
        with self.method.backbone.autocast():
            return self.method.text_features(state, self.text_stem)

    def logits(self, state: State, images: Stem, texts: Tensor) -> Tensor:
        """[C,B,K] of images, client by client, and what `text_features` gave."""
        return self.features_and_logits(state, images, texts)[1]

    def features_and_logits(self, state: State, images: Stem, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Features of images [C,B,...] beside their `logits`."""
        with self.method.backbone.autocast():
            features = self.method.image_features(state, images)
            return features, self.method.logits(state, features, texts)

    def shared_outputs(self, state: State, images: Stem) -> Tensor | None:
        """See `Method.shared_outputs`."""
        with self.method.backbone.autocast():
            return self.method.shared_outputs(state, images)

    def losses(self, state: State, images: Stem | Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Training losses [C] of a batch: normalised pixels [C*B,3,S,S] or their stem, client by client; labels and weights [C,B]."""
        with self.method.backbone.autocast():
            stem = self.method.image_stem(images) if isinstance(images, Tensor) else images
            features = self.method.image_features(state, stem)
            texts = self.method.text_features(state, self.text_stem)
            return self.method.loss(state, features, texts, labels, weights)
