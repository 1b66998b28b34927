"""Learned tokens behind an image's patches, of each client its own.

Shape legend: C clients, N images of one client, n learned tokens, T tokens, W width of the image tower, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfedmma.clip.towers import VisualTower


def for_each(own: Tensor, x: Tensor) -> Tensor:
    """Each client's tokens [C,n,W] beside each of its sequences: [C*N,T,W] -> [C*N,n,W]."""
    return own.unsqueeze(1).expand(-1, len(x) // len(own), -1, -1).flatten(0, 1)


def appended(tower: VisualTower, own: Tensor, x: Tensor) -> Tensor:
    """The tokens that enter block 1 [C*N,T,W] with each client's [C,n,W] behind them: without position, and before ln_pre.

    That norm works on each token alone and those of ``x`` have been through it, so appending normed tokens to normed ones is the same.
    """
    return torch.cat([x, for_each(tower.norm_pre(own), x)], dim=1)


def features_without(tower: VisualTower, x: Tensor, pool: Tensor | int | None, learned: int) -> Tensor:
    """Image features [C*N,D], not normalised, of the last block's tokens: where they are averaged, of the patches as without prompts."""
    return tower.features(x[:, : x.shape[1] - learned] if pool is None else x)
