"""Who takes part in a round, and who is tested."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pfedmma import rng


def sample(clients: Sequence[int], participation: float, seed: int, round_: int) -> list[int]:
    """The participants of a round, ascending: `count` of the ``clients`` (ids), the same on every rank."""
    return _drawn(clients, count(len(clients), participation), rng.generator(seed, "cohort", round_))


def count(clients: int, participation: float) -> int:
    """How many of K clients take part in a round: max(1, round(p K))."""
    return max(1, round(participation * clients))


def tested(clients: Sequence[int], wanted: int, seed: int) -> list[int]:
    """Those of the ``clients`` (ids) that are tested, ascending: ``wanted``, the same in every round and on every rank; 0 tests all."""
    if wanted == 0 or wanted >= len(clients):
        return sorted(clients)
    return _drawn(clients, wanted, rng.generator(seed, "tested"))


def _drawn(clients: Sequence[int], wanted: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(clients), generator=generator)
    return sorted(clients[i] for i in order[:wanted].tolist())
