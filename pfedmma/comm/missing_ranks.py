"""Who came to a collective and who did not, for the ranks that wait in it.

A rank that waits long enters in the store where the ranks once met how many collectives it has come to; a round in which all come
soon costs nothing. When a collective fails, whoever has entered fewer is missing.
"""

from __future__ import annotations

import time
from typing import Any

_KEY = "pfedmma/rank-{}"


class RollCall:
    """One rank's view of who has come. ``store``: a ``torch.distributed.Store`` that all ranks share."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size

    def here(self, number: int) -> None:
        """Say that this rank waits in the collective of that number."""
        self.store.set(_KEY.format(self.rank), str(number))

    def missing(self, number: int, patience: float) -> list[int]:
        """The ranks that have not come to collective ``number`` within ``patience`` seconds.

        Raises:
            RuntimeError: the store is gone, and with it the process that kept it.
        """
        self.here(number)
        left = set(range(self.size)) - {self.rank}
        deadline = time.monotonic() + patience
        while True:
            left = {rank for rank in left if self._last(rank) < number}
            if not left or time.monotonic() >= deadline:
                return sorted(left)
            time.sleep(0.05)

    def _last(self, rank: int) -> int:
        key = _KEY.format(rank)
        return int(self.store.get(key)) if self.store.check([key]) else -1
