"""The batches of local training: which images each client sees in which step, on the host and on the device.

Shape legend: C clients in the stack, k of them still training, B images a client, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.data.partition.federated import Client
from pfedmma.data.pixels.pixels import Staged
from pfedmma.stack.optim import OptimizerConfig


@dataclass(frozen=True)
class LocalWork:
    """What a client does in a round: ``epochs`` passes over its images in batches of ``batch_size``."""

    epochs: int
    batch_size: int
    optimizer: OptimizerConfig
    seed: int


@dataclass(frozen=True)
class StagedBatch:
    """A batch of k clients on the host: the distinct ``images``; ``places`` [k,B], their rows; ``labels`` and ``weights`` [k,B].

    ``images`` None: stems are at hand, and ``places`` are positions among each client's own training images. ``seeds`` [k]: a random
    number of each client for this step, for methods that draw noise.
    """

    images: Staged | None
    places: Tensor
    labels: Tensor
    weights: Tensor
    seeds: Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of k clients: ``images``, client by client, are normalised pixels [k*B,3,S,S], or the stem that follows from them.

    ``labels`` and ``weights`` [k,B], ``seeds`` [k].
    """

    images: Any
    labels: Tensor
    weights: Tensor
    seeds: Tensor


def batches(client: Client, work: LocalWork, round_: int) -> list[Tensor]:
    """The client's batches of one round: positions in its own training images, reshuffled every epoch."""
    plan: list[Tensor] = []
    for epoch in range(work.epochs):
        gen = rng.generator(work.seed, "shuffle", round_, client.id, epoch)
        plan += torch.randperm(len(client.train), generator=gen).split(work.batch_size)
    return plan


def by_steps(clients: Sequence[Client], batch_size: int) -> list[Client]:
    """Clients with the most local steps first; equal ones in order of id."""
    return sorted(clients, key=lambda c: (-len(c.train) // batch_size, c.id))
