"""FedPGP (Cui et al. 2024, arXiv 2405.09771): one context for all clients, and a low-rank change of it for each.

A client's context is sigma + u v. Trained: ``sigma`` [L,W], exchanged by weighted mean, and the private ``u`` [L,rank] and ``v``
[rank,W]. A contrastive term keeps what sigma alone says of a class near to the frozen CLIP and apart from what the client's own context
says: for each class a softmax over two cosines, (anchor, sigma) and (sigma, sigma + u v), of which the first should win.

A client answers with the server's sigma and its own u and v, as in the public code, which tests all clients after averaging.

Deliberately unlike the public code: one context (there the script trains two, and the loss sees two logits a class); the anchor is by
default the data's hand-written prompt, embedded as it stands (there it is the name behind the placeholders "X X ... X", here
``anchor: placeholder``); the anchor's features are computed once and not in every step.

Shape legend: C clients, B images a client, K classes, L context tokens, W text width, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.clip.stems import Features
from pfedmma.clip.towers import Places
from pfedmma.methods.adapters.context import (
    STD,
    ContextConfig,
    context_length,
    context_stem,
    features_of_several,
    initial_context,
    prompt_features,
)
from pfedmma.methods.base import SEEDS, Entry, Method, shared_by
from pfedmma.stack.rules import MEAN, Given, State
from pfedmma.system import checks
from pfedmma.system.options import setting

ANCHORS = ("template", "placeholder")


@dataclass(frozen=True)
class FedPGPConfig(ContextConfig):
    """FedPGP: a shared context and a low-rank change of it for each client."""

    rank: int = setting(8, "rank of a client's change of the context")
    mu: float = setting(0.5, "weight of the contrastive term")
    tau: float = setting(0.5, "temperature of the contrastive term")
    anchor: str = setting(
        "template",
        'frozen prompt of the contrastive term: template (the data\'s own) or placeholder ("X X ... X {class}.")',
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.between("rank", self.rank, 1, 4096)
        checks.at_least("mu", self.mu, 0)
        checks.positive("tau", self.tau)
        checks.one_of("anchor", self.anchor, ANCHORS)


@dataclass(frozen=True)
class AnchoredStem:
    """``context``: the prompts with room for the learned context; ``anchor``: features [K,D] of the frozen prompts, not normalised."""

    context: PromptStem
    anchor: Features


@dataclass(frozen=True)
class FedPGP(Method):
    """sigma for all clients, u v for each."""

    settings: FedPGPConfig
    length: int

    @classmethod
    def from_settings(cls, settings: FedPGPConfig, backbone: Backbone) -> FedPGP:
        return cls(backbone, settings, context_length(backbone, settings))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        width, rank = self.backbone.text.width, self.settings.rank
        return {"sigma": (self.length, width), "u": (self.length, rank), "v": (rank, width)}

    @property
    def exchange(self) -> dict[str, str]:
        return {"sigma": MEAN}

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        sigma = initial_context(self.backbone, self.length, self.settings.words, generator)
        return {"sigma": sigma} | {name: torch.randn(self.shapes[name], generator=generator) * STD for name in ("u", "v")}

    def text_stem(self, prompts: Prompts) -> AnchoredStem:
        context = context_stem(self.backbone, prompts.names, self.length)
        if self.settings.anchor == "template":
            return AnchoredStem(context, self.backbone.text_features(prompts))
        text = self.backbone.text
        return AnchoredStem(context, Features(text.features(text.finish(context, Places())).float()))  # the placeholders as they are

    def fixed(self, state: State, given: Given, text_stem: AnchoredStem) -> dict[str, Tensor]:
        return {"anchor": shared_by(state, F.normalize(text_stem.anchor.value, dim=-1))}

    def text_features(self, state: State, stem: AnchoredStem) -> Tensor:
        """[C,K,D] with sigma + u v; where the contrastive term is needed [C,2,K,D], those and the ones with sigma alone."""
        sigma, own = state["sigma"], own_context(state)
        if not self._contrasts(state):
            return prompt_features(self.backbone, stem.context, own)
        return features_of_several(self.backbone, stem.context, [own, sigma])

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        if not self._contrasts(state):
            return super().loss(state, images, texts, labels, weights)
        own, sigma = texts.unbind(dim=1)
        loss = super().loss(state, images, own, labels, weights)
        return loss + self.settings.mu * contrast(state["anchor"], sigma, own, self.settings.tau)

    def _contrasts(self, state: State) -> bool:
        """In training alone, and only if the term counts."""
        return SEEDS in state and self.settings.mu > 0


def own_context(state: State) -> Tensor:
    """sigma + u v of each client [C,L,W], in fp32 under mixed precision too: u v is small beside sigma."""
    with torch.autocast(state["u"].device.type, enabled=False):
        return state["sigma"] + state["u"] @ state["v"]


def contrast(anchor: Tensor, sigma: Tensor, own: Tensor, tau: float) -> Tensor:
    """The contrastive term of each client [C] from normalised text features [C,K,D] each.

    A class adds -log(e^p / (e^p + e^n)) = log(1 + e^(n - p)), with p = cos(anchor, sigma) / tau and n = cos(sigma, own) / tau.
    """
    positive, negative = (anchor * sigma).sum(dim=-1), (sigma * own).sum(dim=-1)
    return F.softplus((negative - positive) / tau).mean(dim=1)


ENTRIES = (Entry("fedpgp", FedPGP.from_settings, FedPGPConfig),)
