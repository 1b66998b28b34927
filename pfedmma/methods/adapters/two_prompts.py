"""Two learned contexts of each client: one that is averaged over the participants, and one that stays its own.

Shape legend: C clients, K classes, N = 2 prompts, L context tokens, W text width, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.methods.adapters.context import ContextConfig, context_length, context_stem, features_of_several, initial_context
from pfedmma.methods.base import Method
from pfedmma.stack.rules import MEAN, State

SHARED, PRIVATE = PROMPTS = ("shared.prompt", "private.prompt")
M = TypeVar("M", bound="TwoPrompts")


@dataclass(frozen=True)
class TwoPrompts(Method):
    """A prompt [L,W] for all clients and one for each, of ``length`` L; both begin as the words of the settings, or apart at random."""

    settings: ContextConfig
    length: int

    @classmethod
    def from_settings(cls: type[M], settings: ContextConfig, backbone: Backbone) -> M:
        return cls(backbone, settings, context_length(backbone, settings))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(PROMPTS, (self.length, self.backbone.text.width))

    @property
    def exchange(self) -> dict[str, str]:
        return {SHARED: MEAN}

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: initial_context(self.backbone, self.length, self.settings.words, generator) for name in PROMPTS}

    def text_stem(self, prompts: Prompts) -> PromptStem:
        return context_stem(self.backbone, prompts.names, self.length)

    def text_features(self, state: State, stem: PromptStem) -> Tensor:
        """[C,N,K,D]: the shared prompt, then the private one."""
        return features_of_several(self.backbone, stem, [state[name] for name in PROMPTS])
