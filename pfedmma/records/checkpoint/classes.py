"""What a checkpoint keeps of a run's classes, for who has the run and not its data."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from pfedmma.data.partition.federated import Federation


def progress(federation: Federation) -> dict[str, Any]:
    """Names of the base and novel classes, and which base classes each client holds: [clients, base] bits as base64, which stay small."""
    base = federation.base.classes
    held = np.zeros((len(federation.clients), len(base)), dtype=bool)
    for row, client in zip(held, federation.clients, strict=True):
        row[list(client.classes)] = True
    novel = federation.novel.classes if federation.novel else ()
    return {"base": list(base), "novel": list(novel), "held": base64.b64encode(np.packbits(held).tobytes()).decode()}


def of_client(classes: Any, client: int, clients: int) -> dict[str, list[str]]:
    """{"base", "novel", "own"} from what `progress` made. Raises ValueError, TypeError or LookupError if it is something else."""
    base, novel = classes["base"], classes["novel"]
    if not all(isinstance(name, str) for name in [*base, *novel]):
        raise ValueError("a class in it is no name")
    packed = np.frombuffer(base64.b64decode(classes["held"], validate=True), dtype=np.uint8)
    bits = np.unpackbits(packed, count=clients * len(base)).reshape(clients, len(base))
    if len(packed) != -(-clients * len(base) // 8):
        raise ValueError("it is of another number of clients")
    return {"base": base, "novel": novel, "own": [name for name, has in zip(base, bits[client], strict=True) if has]}
