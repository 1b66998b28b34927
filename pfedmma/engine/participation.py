"""Who takes part in a round."""

from __future__ import annotations

import torch

from pfedmma import rng


def sample(clients: int, participation: float, seed: int, round_: int) -> list[int]:
    """The participants of a round, ascending: max(1, round(p K)) of K clients, the same on every rank."""
    count = max(1, round(participation * clients))
    order = torch.randperm(clients, generator=rng.generator(seed, "cohort", round_))
    return sorted(order[:count].tolist())
