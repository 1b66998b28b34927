"""Randomness that never depends on rank, world size or order of execution.

Every draw of a run comes from a generator made here from (seed, purpose, round, client, ...), so that 1, 2 or 8 ranks
draw the same numbers and a resumed run needs no saved generator state: its keys follow from the round it stands at.
"""

from __future__ import annotations

import hashlib

import torch


def key(seed: int, purpose: str, *ids: int | str) -> int:
    """A 63-bit seed that is the same on every machine for the same (seed, purpose, ids)."""
    text = "/".join(str(part) for part in (seed, purpose, *ids))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *ids: int | str) -> torch.Generator:
    """A CPU generator keyed by ``seed``, what the numbers are for, and e.g. round and client id.

    Always on the CPU, whatever the device of the run: CUDA generators give other numbers than CPU ones.
    """
    return torch.Generator().manual_seed(key(seed, purpose, *ids))
