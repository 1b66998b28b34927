"""A name for the meeting of ranks that no earlier meeting had.

torchrun starts all ranks again when one has failed, and gives them the store of those before. What these have left there, addresses of
processes that are gone, must not be taken for what the new ones write: they agree on a name first, and meet under it.
How often a node has restarted would not do as a name: nodes count for themselves.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

_KEY = "pfedmma/meeting/{}-{}"


def fresh_name(store: Any, rank: int, size: int, timeout: float) -> str:
    """The name that rank 0 has drawn for this start of the ranks. All enter.

    Each other rank asks with a word of its own, so that an answer to an earlier one is not taken for its.

    Args:
        store: a ``torch.distributed.Store`` that all ranks share.
        timeout: seconds to wait for the others.

    Raises:
        RuntimeError: somebody did not come; says who.
    """
    own, deadline = secrets.token_hex(8), time.monotonic() + timeout

    def read(what: str, of: int) -> str:
        key = _KEY.format(what, of)
        return str(store.get(key).decode()) if store.check([key]) else ""

    if rank > 0:
        store.set(_KEY.format("ask", rank), own)
        while not (answer := read("answer", rank)).startswith(own):
            _wait(deadline, [0])
        name = answer.removeprefix(own)
        store.set(_KEY.format("heard", rank), name)
        return name
    left = list(range(1, size))
    while left:
        for other in left:
            store.set(_KEY.format("answer", other), read("ask", other) + own)
        left = [other for other in left if read("heard", other) != own]
        if left:
            _wait(deadline, left)
    return own


def _wait(deadline: float, for_ranks: list[int]) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(f"rank{'s' if len(for_ranks) > 1 else ''} {', '.join(map(str, for_ranks[:20]))} did not come")
    time.sleep(0.02)
