"""PromptFL (Guo et al. 2022, arXiv 2208.11625): one learned context, averaged over the participants.

Trained: ``prompt`` [L,W], exchanged by weighted mean. With ``mu`` > 0 a proximal term mu/2 |P - P_global|^2 (FedProx) is added, P_global
the prompt as it was received.

A client answers with the server's prompt, as in the public code, which tests the averaged one.

Deliberately unlike the public code: the proximal term has a gradient (there it is taken from detached copies and has none); the mean is
that of the round's participants, weighted by their images (there a plain one, of all uploads since the first round).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.methods.adapters.context import ContextConfig, context_length, context_stem, initial_context, prompt_features
from pfedmma.methods.base import Entry, Method
from pfedmma.stack.rules import MEAN, Given, State
from pfedmma.system import checks
from pfedmma.system.options import setting


@dataclass(frozen=True)
class PromptFLConfig(ContextConfig):
    """PromptFL: one learned context."""

    mu: float = setting(0.0, "weight of the proximal term of FedProx; 0: none")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least("mu", self.mu, 0)


@dataclass(frozen=True)
class PromptFL(Method):
    """One context for all clients."""

    settings: PromptFLConfig
    length: int

    @classmethod
    def from_settings(cls, settings: PromptFLConfig, backbone: Backbone) -> PromptFL:
        return cls(backbone, settings, context_length(backbone, settings))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (self.length, self.backbone.text.width)}

    @property
    def exchange(self) -> dict[str, str]:
        return {"prompt": MEAN}

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"prompt": initial_context(self.backbone, self.length, self.settings.words, generator)}

    def text_stem(self, prompts: Prompts) -> PromptStem:
        return context_stem(self.backbone, prompts.names, self.length)

    def fixed(self, state: State, given: Given, text_stem: PromptStem) -> dict[str, Tensor]:
        return {"received": state["prompt"].clone()}  # training changes the state in place

    def text_features(self, state: State, stem: PromptStem) -> Tensor:
        return prompt_features(self.backbone, stem, state["prompt"])

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        loss = super().loss(state, images, texts, labels, weights)
        if self.settings.mu == 0:
            return loss
        return loss + self.settings.mu / 2 * (state["prompt"] - state["received"]).square().sum(dim=(1, 2))


ENTRIES = (Entry("promptfl", PromptFL.from_settings, PromptFLConfig),)
