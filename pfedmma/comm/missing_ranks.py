"""Who came to a collective and who did not, for the ranks that wait in it.

A rank that waits long enters in the store where the ranks once met how many collectives it has come to; a round in which all come
soon costs nothing. When a collective fails, whoever has entered fewer is missing.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from pfedmma.comm.patience import within

_KEY = "pfedmma/rank-{}"


class RollCall:
    """One rank's view of who has come. ``store``: a ``torch.distributed.Store`` that all ranks share."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size

    def here(self, number: int, patience: float = 1.0) -> None:
        """Say that this rank waits in the collective of that number.

        Raises:
            Silence: the store has not taken it within ``patience`` seconds.
            RuntimeError: the store is gone.
        """
        within(patience, lambda: self.store.set(_KEY.format(self.rank), str(number)))

    def missing(self, number: int, patience: float) -> list[int]:
        """The ranks that have not come to collective ``number`` within ``patience`` seconds.

        Raises:
            Silence: the store does not answer, because the process that keeps it hangs.
            RuntimeError: the store is gone, and with it the process that kept it.
        """
        deadline = time.monotonic() + patience
        self.here(number, patience)
        left = set(range(self.size)) - {self.rank}
        while True:
            left = within(deadline - time.monotonic(), partial(self._behind, number, left))
            if not left or time.monotonic() >= deadline:
                return sorted(left)
            time.sleep(0.05)

    def _behind(self, number: int, ranks: set[int]) -> set[int]:
        return {rank for rank in ranks if self._last(rank) < number}

    def _last(self, rank: int) -> int:
        key = _KEY.format(rank)
        return int(self.store.get(key)) if self.store.check([key]) else -1
