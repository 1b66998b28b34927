"""Who takes part in a round, and who is tested."""

from __future__ import annotations

import torch

from pfedmma import rng


def sample(clients: int, participation: float, seed: int, round_: int) -> list[int]:
    """The participants of a round, ascending: max(1, round(p K)) of K clients, the same on every rank."""
    count = max(1, round(participation * clients))
    order = torch.randperm(clients, generator=rng.generator(seed, "cohort", round_))
    return sorted(order[:count].tolist())


def tested(clients: int, count: int, seed: int) -> list[int]:
    """The clients that are tested, ascending: ``count`` of them, the same in every round and on every rank; 0 tests all."""
    if count == 0 or count >= clients:
        return list(range(clients))
    return sorted(torch.randperm(clients, generator=rng.generator(seed, "tested"))[:count].tolist())
