"""Who takes part in a round, and who is tested."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pfedmma import rng
from pfedmma.engine.federation import POISSON, FederationConfig


def sample(clients: Sequence[int], federation: FederationConfig, seed: int, round_: int) -> list[int]:
    """The participants of a round among the ``clients`` (ids), ascending, the same on every rank; under poisson there may be none."""
    if federation.sampling == POISSON:
        return sorted(i for i in clients if rng.uniform(seed, "poisson", round_, i) < federation.participation)
    asked = _asked(wanted(len(clients), federation, round_), len(clients), federation)
    return _drawn(clients, asked, rng.generator(seed, "cohort", round_))


def wanted(clients: int, federation: FederationConfig, round_: int) -> int:
    """How many uploads a round waits for, at most: of all K clients under poisson, where all that come count."""
    if federation.sampling == POISSON or (round_ == 1 and federation.first_round == "all"):
        return clients
    return count(clients, federation.participation)


def count(clients: int, participation: float) -> int:
    """How many of K clients take part in a round: max(1, round(p K))."""
    return max(1, round(participation * clients))


def expected(clients: int, federation: FederationConfig) -> float:
    """The public number of uploads that a round is expected to count, whatever comes: p K under poisson, else as many as are wanted.

    It depends on no draw, and not on who is drawn in addition or drops out. Of all rounds but the first where ``first_round`` is all.
    """
    if federation.sampling == POISSON:
        return federation.participation * clients
    return float(count(clients, federation.participation))


def training(clients: int, federation: FederationConfig) -> float:
    """How many of K clients train in a round, those drawn in addition among them; the mean over rounds under poisson."""
    if federation.sampling == POISSON:
        return expected(clients, federation)
    return float(_asked(count(clients, federation.participation), clients, federation))


def tested(clients: Sequence[int], wanted: int, seed: int) -> list[int]:
    """Those of the ``clients`` (ids) that are tested, ascending: ``wanted``, the same in every round and on every rank; 0 tests all."""
    if wanted == 0 or wanted >= len(clients):
        return sorted(clients)
    return _drawn(clients, wanted, rng.generator(seed, "tested"))


def _asked(wanted: int, clients: int, federation: FederationConfig) -> int:
    """How many are drawn so that ``wanted`` finish; rounded first, as 1.1 x 10 is a little more than 11 in floating point."""
    return min(clients, math.ceil(round(federation.over_selection * wanted, 6)))


def _drawn(clients: Sequence[int], wanted: int, generator: torch.Generator) -> list[int]:
    order = torch.randperm(len(clients), generator=generator)
    return sorted(clients[i] for i in order[:wanted].tolist())
