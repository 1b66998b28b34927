"""FedOTP (Li et al. 2024, arXiv 2403.00041): a global and a local prompt of each class, matched to image patches by optimal transport.

Trained: ``shared.prompt`` [L,W], exchanged by weighted mean, and ``private.prompt`` [L,W]. A class scores by the similarity of patches
and its two prompts under the transport plan between them. The plan is entropic and partial: the prompts take ``gamma`` of the
patches' mass, so that an image's background need not be matched. No gradient passes through the plan.

A client answers with the server's shared prompt and its own private one, as in the public code, which tests all clients after averaging.

Deliberately unlike the public code: the plan takes a fixed number of iterations (there it ends when the mean change over a batch is
small, and a prediction depends on the batch it is in); small ``eps`` is iterated in log space (there it gives NaN, and the
step is left out); frozen image features take no part in the gradient graph; with ``words``, both prompts begin with them (there a
context of words has no axis of prompts).

Shape legend: C clients, B images a client, K classes, M patches, N = 2 prompts, L context tokens, W text width, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.stems import Features
from pfedmma.methods.adapters.context import ContextConfig
from pfedmma.methods.adapters.two_prompts import TwoPrompts
from pfedmma.methods.base import Entry, per_client
from pfedmma.stack.rules import State
from pfedmma.system import checks
from pfedmma.system.options import setting

PLAIN_EPS = 0.05  # K >= e^-40; u and v, its inverses, stay far from fp32's limits


@dataclass(frozen=True)
class FedOTPConfig(ContextConfig):
    """FedOTP: a shared and a private prompt, matched to image patches."""

    gamma: float = setting(0.8, "share of the patches' mass that is matched, 0 < gamma <= 1")
    eps: float = setting(0.1, "weight of the entropy of the transport plan")
    iterations: int = setting(100, "Sinkhorn iterations")
    balanced: bool = setting(False, "match all mass, every patch as much as any other; gamma is then not read")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.in_unit_interval("gamma", self.gamma)
        checks.at_least("eps", self.eps, 1e-3)  # below it, fp32 resolves the exponents no more
        checks.between("iterations", self.iterations, 1, 10_000)


@dataclass(frozen=True)
class FedOTP(TwoPrompts):
    """A prompt for all clients and one for each, over image patches."""

    settings: FedOTPConfig

    def image_stem(self, pixels: Tensor) -> Features:
        """[N,3,S,S] normalised pixels -> normalised features of the patches [N,M,D], without the class token."""
        tokens = self.backbone.image_stem(pixels, self.backbone.visual.depth, pooled=False).output
        return Features(F.normalize(self.backbone.visual.patch_features(tokens).float(), dim=-1))

    def image_features(self, state: State, stem: Features) -> Tensor:
        """[C,B,M,D]."""
        return per_client(state, stem.value)

    def logits(self, state: State, images: Tensor, texts: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # the exponents are similarities / eps
            similarity = similarities(images.float(), texts.float())
            gamma = 1.0 if self.settings.balanced else self.settings.gamma
            plan = transport(similarity.detach(), gamma, self.settings.eps, self.settings.iterations, self.settings.balanced)
            return self.backbone.logit_scale * (plan * similarity).sum(dim=(2, 3))


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines of each patch and each prompt of a class, from normalised [C,B,M,D] and [C,N,K,D]: [C,B,M,N,K]."""
    flat = torch.bmm(images.flatten(1, 2), texts.flatten(1, 2).transpose(1, 2))  # [C, B*M, N*K]
    return flat.unflatten(2, texts.shape[1:3]).unflatten(1, images.shape[1:3])


@torch.no_grad()
def transport(similarity: Tensor, gamma: float, eps: float, iterations: int, balanced: bool = False) -> Tensor:
    """Entropic plans between patches and prompts [...,M,N,K], one for each class, at cost 1 - ``similarity`` [...,M,N,K].

    Each prompt takes gamma / N, each patch gives 1 / M at most (or, ``balanced``, exactly). Sinkhorn's u = a / (K v), held to at most 1
    unless balanced (Benamou et al. 2015, arXiv 1412.5154), and v = b / (K' u), from u = v = 1. An update of v comes last, so that the
    prompts' shares are exact and those of the patches as near as the iterations bring them. Where ``eps`` is so small that K would
    leave fp32, logarithms are iterated instead.
    """
    patches, prompts = similarity.shape[-3:-1]
    kernel = (similarity - 1.0) / eps
    if eps >= PLAIN_EPS:
        return _plain(kernel.exp(), 1.0 / patches, gamma / prompts, iterations, balanced)
    return _logarithmic(kernel, -math.log(patches), math.log(gamma / prompts), iterations, balanced)


def _plain(kernel: Tensor, a: float, b: float, iterations: int, balanced: bool) -> Tensor:
    parts = kernel.unbind(dim=-2)  # of each prompt [...,M,K]
    v = [torch.ones_like(part[..., :1, :]) for part in parts]
    u = torch.ones_like(parts[0])
    for _ in range(iterations):
        mixed = torch.zeros_like(u)
        for part, share in zip(parts, v, strict=True):
            mixed.addcmul_(part, share)
        u = a / mixed
        if not balanced:
            u = u.clamp_(max=1.0)
        v = [b / (part * u).sum(dim=-2, keepdim=True) for part in parts]
    return torch.stack([u * part * share for part, share in zip(parts, v, strict=True)], dim=-2)


def _logarithmic(kernel: Tensor, a: float, b: float, iterations: int, balanced: bool) -> Tensor:
    """As `_plain`, all arguments logarithms."""
    v = torch.zeros_like(kernel[..., :1, :, :])
    u = torch.zeros_like(kernel[..., :1, :])
    for _ in range(iterations):
        u = a - torch.logsumexp(kernel + v, dim=-2, keepdim=True)
        if not balanced:
            u = u.clamp(max=0.0)
        v = b - torch.logsumexp(kernel + u, dim=-3, keepdim=True)
    return (kernel + u + v).exp()


ENTRIES = (Entry("fedotp", FedOTP.from_settings, FedOTPConfig),)
