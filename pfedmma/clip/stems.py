"""Stems that are kept because their pixels come again: an exact shortcut, bounded in memory.

What the frozen blocks below the first adapter make of an image follows from its pixels alone. Test images are the same at every
evaluation, and training images in every epoch where they are not augmented.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

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
