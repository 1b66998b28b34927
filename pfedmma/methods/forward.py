"""The one driver of a method's forward pass, in training, evaluation, prediction and exported clients alike.

    stems -> what stays fixed -> features of texts and images -> logits or losses

Each pass runs in mixed precision by itself: autocast keeps low-precision copies of trained tensors until it is left, so it must not reach
from one pass to the next.

Shape legend: C clients, B images a client, N images, K classes, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfedmma.clip.stems import Stem
from pfedmma.methods.base import Method
from pfedmma.methods.compiled import Compiled, losses
from pfedmma.methods.prompts import require_told_apart
from pfedmma.stack.rules import Given, State


@dataclass(frozen=True)
class Forward:
    """A method on the prompts of the ``classes``. ``text_stem``: what follows from the prompts alone. ``compiled``: for `gradients`."""

    method: Method
    classes: tuple[str, ...]
    text_stem: Any
    compiled: Compiled | None = None

    @classmethod
    def from_prompts(cls, method: Method, template: str, names: Sequence[str], compiled: Compiled | None = None) -> Forward:
        """The method on the class prompts ``template`` of ``names``; a `UserError` where two of them are encoded alike."""
        prompts = method.backbone.prompts(template, tuple(names))
        require_told_apart(prompts.names, prompts.tokens)
        with method.backbone.autocast():
            return cls(method, tuple(names), method.text_stem(prompts), compiled)

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
            return losses(self.method, self.text_stem, state, images, labels, weights)

    def gradients(
        self, state: State, leaves: Sequence[Tensor], batch: tuple[Stem | Tensor, Tensor, Tensor], scaled: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Losses and gradients of a training step.

        Args:
            leaves: the entries [C,...] of ``state`` that take a gradient.
            batch: images, labels and weights, as `losses` takes them.
            scaled: what is made of the losses before they are differentiated.

        Returns:
            The `losses` [C], and the gradients of ``leaves`` beside one another [C,...], fp32; None where no trained tensor acts.
        """

        def differentiated(found: Tensor) -> tuple[Tensor, Tensor | None]:
            if not found.requires_grad:
                return found, None
            # A client's gradient comes from its own loss alone, so the sum serves all of them.
            grads = torch.autograd.grad(scaled(found).sum(), leaves, allow_unused=True, materialize_grads=True)
            return found.detach(), torch.cat([grad.flatten(1) for grad in grads], dim=1).float()

        if self.compiled is not None:
            done = self.compiled(self.method, self.text_stem, (state, *batch), differentiated)
            if done is not None:
                return done
        return differentiated(self.losses(state, *batch))
