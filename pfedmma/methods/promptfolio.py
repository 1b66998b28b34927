"""PromptFolio (Pan et al. 2024, arXiv 2409.19610): a class's text feature is a portfolio of a global and a local prompt's.

Trained, both in every step: ``shared.prompt`` [L,W], exchanged by weighted mean, and ``private.prompt`` [L,W]. With t_g and t_l the
normalised text features that the two give of a class, the class is compared with

    t = (1 - theta) t_g + theta t_l,

which is not normalised again, so that logits are mixed in the same shares: (1 - theta) s z.t_g + theta s z.t_l. ``theta`` is the local
share. The published runs have 8 tokens (``context: 8``).

A client answers with the server's shared prompt and its own private one, as in the public code, which tests after averaging.

Deliberately unlike the public code: each client has an optimizer of its own and the learning rate is constant (there one optimizer and
one schedule run on through all clients, so that momentum leaks and the rate falls for one client and rises for the next); the mean's
weights are those of the participants that sent the prompts (there they are looked up by id in a list in order of drawing, so that prompts
get other clients' weights and partial participation fails); prompts are fp32 (there fp16); the last round is reported, not the best on
test images; learning rate and epochs are those that its configuration file sets, which there override the command line.

Shape legend: C clients, K classes, L context tokens, W text width, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.methods.adapters.context import ContextConfig
from pfedmma.methods.adapters.two_prompts import TwoPrompts
from pfedmma.methods.base import Entry
from pfedmma.stack.rules import State
from pfedmma.system import checks
from pfedmma.system.options import setting


@dataclass(frozen=True)
class PromptFolioConfig(ContextConfig):
    """PromptFolio: a class's text feature mixed from a shared and a private prompt's."""

    theta: float = setting(0.4, "share of the private prompt's text feature, from 0 to 1; the rest is the shared prompt's")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.between("theta", self.theta, 0, 1)


@dataclass(frozen=True)
class PromptFolio(TwoPrompts):
    """A prompt for all clients and one for each, mixed class by class."""

    settings: PromptFolioConfig

    def text_features(self, state: State, stem: PromptStem) -> Tensor:
        """[C,K,D], not normalised."""
        shared, private = super().text_features(state, stem).unbind(dim=1)
        return (1.0 - self.settings.theta) * shared + self.settings.theta * private


ENTRIES = (Entry("promptfolio", PromptFolio.from_settings, PromptFolioConfig, {"lr": 2e-3}),)
