"""One client's model, of any method: a classifier over any class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.methods.base import Method
from pfedmma.methods.forward import Forward
from pfedmma.stack.rules import Given, Others, State


@dataclass(frozen=True)
class PersonalCLIP:
    """A client's model. ``state``: its tensors {name: [1, *shape]}; ``others``: what it reads of other clients.

    ``template`` is that of its class prompts, ``classes`` are those of its run where they are known.
    """

    method: Method
    state: State
    others: Others | None
    template: str
    classes: tuple[str, ...] = ()

    @classmethod
    def from_tensors(cls, method: Method, tensors: State, read: State, template: str) -> PersonalCLIP:
        """From one client's tensors {name: [*shape]} and what it reads of E others {name: [E, *shape]}, on any device."""
        device = method.backbone.device
        state, others = ({name: x.to(device).float().unsqueeze(0) for name, x in found.items()} for found in (tensors, read))
        if not others:
            return cls(method, state, None, template)
        present = torch.ones(1, next(iter(others.values())).shape[1], dtype=torch.bool, device=device)
        return cls(method, state, Others(others, present), template)

    @torch.no_grad()
    def classifier(self, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """From preprocessed images [N,3,S,S] to logits [N,K] over the classes ``names``; their text features are computed once."""
        forward = Forward.from_prompts(self.method, self.template, names)
        state = {**self.state, **forward.fixed(self.state, Given(self.others))}
        texts = forward.text_features(state)

        @torch.no_grad()
        def classify(images: Tensor) -> Tensor:
            return forward.logits(state, forward.image_stem(images.float()), texts)[0]

        return classify
