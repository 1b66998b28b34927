"""Where ranks meet: a name that no earlier meeting had, and a port that no other machine needs to reach.

torchrun starts all ranks again when one has failed, and gives them the store of those before; a file may be left from a run that was
killed. What these have left there, addresses of processes that are gone, must not be taken for what the new ones write: they agree on a
name first, and meet under it. How often a node has restarted would not do as a name: nodes count for themselves.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
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


def bound_socket(host: str, port: int) -> socket.socket | None:
    """A socket for the store of rank 0 on the one interface that ``host`` is the address of; None: on all of them, as torch does.

    A host's name may be another address to itself (127.0.1.1) than to the others, so only an address, or localhost, is taken at its word.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None
    bound = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((str(address), port))
        bound.listen()
    except OSError:  # no address of this machine, or a port that is taken, which torch says better
        bound.close()
        return None
    return bound
