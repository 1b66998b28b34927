"""Stems that are kept because their pixels come again: an exact shortcut, bounded in memory.

What the frozen blocks below the first adapter make of an image follows from its pixels alone. Test images are the same at every
evaluation, and training images in every epoch where they are not augmented.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class StemCache:
    """Stems by key, each from the first time it is asked for, until ``limit`` bytes are held; what finds no room is made anew each time."""

    def __init__(self, limit: float) -> None:
        self.limit, self.held = limit, 0
        self.full = limit == 0  # something has found no room
        self._stems: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The stem under ``key``; ``make`` computes it."""
        if key in self._stems:
            return self._stems[key]
        stem = make()
        size = sum(part.nbytes for part in stem if isinstance(part, Tensor))
        if self.held + size <= self.limit:
            self._stems[key] = stem
            self.held += size
        else:
            self.full = True
        return stem

    def __contains__(self, key: Hashable) -> bool:
        return key in self._stems


class Stem(NamedTuple):
    """What the lowest ``blocks`` frozen blocks leave to the first place in use.

    ``output`` [N,T,W] is the output of the last of them ([N,1,W] where the last block of the tower keeps the pooled token alone) and
    ``normed``, of the same shape, LN1 of its input; None with ``blocks`` 0. ``pool`` [N] is the index of the pooled token, None
    where all tokens are kept to the end.
    """

    output: Tensor
    normed: Tensor | None
    pool: Tensor | None
    blocks: int

    def repeat(self, clients: int) -> Stem:
        """The same stem for each of ``clients`` clients: [N,...] -> [clients * N, ...]."""
        return self._each(lambda t: repeat(t, clients))

    def take(self, rows: Tensor) -> Stem:
        """The stem of some of its sequences."""
        return self._each(lambda t: t[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Stem:
        normed, pool = (None if t is None else change(t) for t in (self.normed, self.pool))
        return Stem(change(self.output), normed, pool, self.blocks)

    @staticmethod
    def join(stems: Sequence[Stem]) -> Stem:
        """One stem of all their sequences."""
        first = stems[0]
        normed = None if first.normed is None else torch.cat([s.normed for s in stems if s.normed is not None])
        pool = None if first.pool is None else torch.cat([s.pool for s in stems if s.pool is not None])
        return Stem(torch.cat([s.output for s in stems]), normed, pool, first.blocks)


class Features(NamedTuple):
    """The stem of a tower in which no trained tensor acts: its finished features ``value`` [N,...]."""

    value: Tensor

    def repeat(self, clients: int) -> Features:
        return Features(repeat(self.value, clients))

    def take(self, rows: Tensor) -> Features:
        return Features(self.value[rows])

    @staticmethod
    def join(stems: Sequence[Features]) -> Features:
        return Features(torch.cat([s.value for s in stems]))


def repeat(x: Tensor, clients: int) -> Tensor:
    """[N,...] -> [clients * N, ...], the same for each client."""
    return x if clients == 1 else x.expand(clients, *x.shape).flatten(0, 1)
