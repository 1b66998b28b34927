"""FedPHA (Fang et al., ICML 2025, PMLR 267): a private prompt, pulled along what a global one says least of and pushed apart from it.

Trained: ``shared.prompt`` G [L,W], exchanged by weighted mean, and ``private.prompt`` P [L,W]. V [W,L] holds the right singular vectors
of G, largest singular value first; V2 is V without the first r = floor(L (1 - ratio)), and P' = P V2 V2^T. With t_l, t_g and t_p the
normalised text features of a class by P, G and P', all with a gradient,

    loss = CE(s z.t_l) + CE(s z.t_g) + mean over classes and D of (t_l - t_p)^2 + mean over classes of relu(alpha - |t_l - t_g|).

The pull is 4/D at most; the push is 0 from a cosine of 1 - alpha^2 / 2 down. The public code calls V2 a null space. V is thin, so that P'
lies in the row space of G and keeps little of a P that has nothing to do with it; ``complement`` takes I - V1 V1^T instead, all but the
first r directions, which may have been meant.

A client answers with its private prompt alone: what the server has made of G changes no prediction, and who never trained answers with
the private prompt that all begin with.

V2 is not detached: the pull reaches G through the singular value decomposition, as in the public code. That gradient is tiny, and has no
bound where singular values lie close together; ``through_svd: false`` leaves it out.

Deliberately unlike the public code: all private prompts have one length, that of G (there 4 to 32 tokens, pooled where the longest prompt
of all ends, that is on padding); r is the floor of the exact product (there 10 tokens have r = 1 by rounding); each client has an
optimizer of its own and the rate is constant (there one optimizer and one schedule run on through all clients); prompts are fp32 (there
fp16); as many take part as the run says (there all, whatever is asked for); the last round is reported, not the best on test images.

Shape legend: C clients, B images a client, K classes, L context tokens, W text width, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.methods.adapters.context import ContextConfig, features_of_several, prompt_features
from pfedmma.methods.adapters.two_prompts import PRIVATE, SHARED, TwoPrompts
from pfedmma.methods.base import SEEDS, Entry
from pfedmma.stack.rules import State
from pfedmma.system import checks
from pfedmma.system.options import setting


@dataclass(frozen=True)
class FedPHAConfig(ContextConfig):
    """FedPHA: a private prompt between a pull and a push of a shared one."""

    ratio: float = setting(0.8, "share of the shared prompt's directions that the private prompt is projected on, the weakest ones")
    alpha: float = setting(1.0, "distance of private and shared text features from which the push ends; 0: none")
    complement: bool = setting(False, "project on all directions but the shared prompt's strongest, not on its weakest alone")
    through_svd: bool = setting(True, "the pull has a gradient in the shared prompt, as published; it is unstable at close singular values")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.between("ratio", self.ratio, 0, 1)
        checks.at_least("alpha", self.alpha, 0)


@dataclass(frozen=True)
class FedPHA(TwoPrompts):
    """A prompt for all clients and one for each, which alone answers."""

    settings: FedPHAConfig

    @property
    def strongest(self) -> int:
        """r, how many directions the projection leaves out."""
        return math.floor(self.length * (1.0 - self.settings.ratio) + 1e-9)  # 10 x 0.2 is less than 2 in floating point

    def text_features(self, state: State, stem: PromptStem) -> Tensor:
        """[C,K,D] of P; in training [C,3,K,D]: of P, G and P'."""
        own, shared = state[PRIVATE], state[SHARED]
        if SEEDS not in state:
            return prompt_features(self.backbone, stem, own)
        return features_of_several(self.backbone, stem, [own, shared, self.projected(own, shared)])

    def projected(self, own: Tensor, shared: Tensor) -> Tensor:
        """P' of P and G [C,L,W], in fp32 under mixed precision too."""
        with torch.autocast(own.device.type, enabled=False):
            basis = shared if self.settings.through_svd else shared.detach()
            directions = torch.linalg.svd(basis, full_matrices=False).Vh  # [C,L,W]
            if self.settings.complement:
                return own - onto(own, directions[:, : self.strongest])
            return onto(own, directions[:, self.strongest :])

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        own, shared, projected = texts.unbind(dim=1)
        fit = sum(super(FedPHA, self).loss(state, images, text, labels, weights) for text in (own, shared))
        return fit + pull(own, projected) + push(own, shared, self.settings.alpha)


def onto(x: Tensor, directions: Tensor) -> Tensor:
    """The part of x [C,L,W] along orthonormal ``directions`` [C,N,W]."""
    return x @ directions.mT @ directions


def pull(own: Tensor, projected: Tensor) -> Tensor:
    """Mean squared difference of text features [C,K,D] of each client: [C]."""
    return (own - projected).square().mean(dim=(1, 2))


def push(own: Tensor, shared: Tensor, alpha: float) -> Tensor:
    """By how much text features [C,K,D] are nearer than ``alpha``, mean over classes: [C]. No gradient where they are the same."""
    return (alpha - (own - shared).norm(dim=-1)).relu().mean(dim=1)


ENTRIES = (Entry("fedpha", FedPHA.from_settings, FedPHAConfig),)
