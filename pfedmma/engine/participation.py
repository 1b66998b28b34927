"""Who takes part in a round, and who is tested."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pfedmma import rng


def sample(clients: Sequence[int], participation: float, seed: int, round_: int) -> list[int]:
    """The participants of a round, ascending: max(1, round(p K)) of K ``clients`` (ids), the same on every rank."""
    count = max(1, round(participation * len(clients)))
    return _drawn(clients, count, rng.generator(seed, "cohort", round_))


def tested(clients: Sequence[int], count: int, seed: int) -> list[int]:
    """Those of the ``clients`` (ids) that are tested, ascending: ``count``, the same in every round and on every rank; 0 tests all."""
    if count == 0 or count >= len(clients):
        return sorted(clients)
    return _drawn(clients, count, rng.generator(seed, "tested"))


def _drawn(clients: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(clients), generator=generator)
    return sorted(clients[i] for i in order[:count].tolist())
