"""Sums that a few participants cannot bend at will.

The median and the trimmed mean (Yin et al., arXiv 1803.01498) are taken coordinate by coordinate, so the server sees each upload: all are
gathered, which the ledger counts. Clipping by norm (Sun et al., arXiv 1911.07963) needs the lengths of the ways alone.

Shape legend: C participants that train on this rank, N of the whole round, X exchanged parameters of one client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.server.rules import SHARED, Link, ServerRules, ServerState, Sum, Uploads, placed, weighted_mean
from pfedmma.system.errors import UserError

MOST_GATHERED = 256e6  # bytes of all uploads of a round, which every rank holds twice for a moment


@dataclass(frozen=True)
class Gathered:
    """``middle`` [N, X] -> [X] of the gathered uploads, each of the same weight."""

    middle: Callable[[Tensor], Tensor]

    def __call__(self, rows: Tensor, uploads: Uploads, state: ServerState, rules: ServerRules, link: Link) -> Sum:
        matrix = placed(rows, uploads)
        matrix = link.sum(matrix.flatten()).view(matrix.shape)
        return Sum(self.middle(matrix), matrix[:, link.pooled])


@dataclass(frozen=True)
class NormClipped:
    """The weighted mean of ways that are at most ``bound`` long; 0: as long as the median of the round's ways."""

    bound: float

    def __call__(self, rows: Tensor, uploads: Uploads, state: ServerState, rules: ServerRules, link: Link) -> Sum:
        ways = rows - state[SHARED]
        lengths = ways.norm(dim=1, keepdim=True)
        bound = torch.tensor(self.bound) if self.bound else median(link.sum(placed(lengths, uploads).flatten())[:, None])
        factor = (bound.to(lengths.device) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)).clamp(max=1.0)
        return weighted_mean(state[SHARED] + factor * ways, uploads, state, rules, link)


def median(matrix: Tensor) -> Tensor:
    """[N, X] -> [X], the mean of the two in the middle where N is even."""
    ordered, half = matrix.sort(dim=0).values, len(matrix) // 2
    return ordered[half] if len(matrix) % 2 else (ordered[half - 1] + ordered[half]) / 2


def trimmed_mean(matrix: Tensor, share: float) -> Tensor:
    """[N, X] -> [X] without the ``share`` of the smallest and of the largest values: floor(share N) of each, less than half."""
    cut = int(share * len(matrix) + 1e-9)
    return matrix.sort(dim=0).values[cut : len(matrix) - cut].mean(dim=0)


def refuse_large(participants: int, size: int) -> None:
    """Raise a `UserError` where the uploads of ``participants``, ``size`` numbers each, are too many to be gathered."""
    wanted = 4 * participants * size
    if wanted > MOST_GATHERED:
        raise UserError(
            f"server.robust: {participants} uploads of {size:,} numbers take {wanted / 1e6:.0f} MB on every rank, more than "
            f"{MOST_GATHERED / 1e6:.0f}; use server.robust=norm_clip, a lower federation.participation, or a method that exchanges less"
        )
