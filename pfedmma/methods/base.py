"""What the engine asks of a method.

A method works on the client axis: its state is {tensor name: [C, *shape]}, and each call serves C clients at once. It reads the
frozen backbone through stems: the part of a forward pass that no trained tensor touches, which the engine computes without
gradients and may keep.

Shape legend: C clients, B images a client, K classes, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Prompts
from pfedmma.clip.towers import Stem

State = Mapping[str, Tensor]


class Method(Protocol):
    """The face of a method.

    ``shapes``: every trained tensor of one client. ``exchange``: tensor name -> rule, ``mean`` for the weighted mean over participants;
    names outside the map are private and never reach a collective.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def exchange(self) -> Mapping[str, str]: ...

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The state in which every client starts, without the client axis."""
        ...

    def image_stem(self, pixels: Tensor) -> Stem:
        """[N,3,S,S] normalised pixels -> what follows from them without trained tensors."""
        ...

    def text_stem(self, prompts: Prompts) -> Stem:
        """K prompts -> what follows from them without trained tensors."""
        ...

    def image_features(self, state: State, stem: Stem) -> Tensor:
        """Stem of C x B images (client by client) -> [C,B,...]."""
        ...

    def text_features(self, state: State, stem: Stem) -> Tensor:
        """Stem of K prompts, the same for all clients -> [C,K,...]."""
        ...

    def logits(self, state: State, images: Tensor, texts: Tensor) -> Tensor:
        """Features of images [C,B,...] and classes [C,K,...] -> [C,B,K]."""
        ...

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Training loss of each client [C]; ``labels`` [C,B], ``weights`` [C,B] sum to 1 a client and are 0 on padding."""
        ...


def cosine_logits(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """[C,B,D], [C,K,D] normalised -> scale x cosines [C,B,K], in fp32."""
    return scale * torch.bmm(images.float(), texts.float().transpose(1, 2))


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted cross-entropy of each client: [C,B,K], [C,B], [C,B] -> [C]."""
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    return (each * weights).sum(dim=1)
