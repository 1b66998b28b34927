"""Whose upload counts: participants fail, and are slow, by draws that depend on the seed, the round and the client alone.

All of it is simulated, and known on every rank. A participant that is lost has trained all the same: what is its own is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from pfedmma import rng
from pfedmma.engine.federation import FederationConfig


class Arrived(NamedTuple):
    """What became of a round's participants; ids, each ascending.

    ``counted``: whose upload is summed; ``failed``: who failed after its training; ``late``: who came after the deadline, or after as many
    as were wanted. ``seconds``: simulated, of the round.
    """

    counted: Sequence[int]
    failed: Sequence[int] = ()
    late: Sequence[int] = ()
    seconds: float = 0.0

    @property
    def lost(self) -> list[int]:
        """Whose upload does not count."""
        return sorted([*self.failed, *self.late])

    @property
    def cohort(self) -> list[int]:
        """All participants."""
        return sorted([*self.counted, *self.lost])


def arrivals(cohort: Sequence[int], wanted: int, steps: Mapping[int, int], federation: FederationConfig, seed: int, round_: int) -> Arrived:
    """What becomes of the participants ``cohort`` of a round that counts ``wanted`` uploads at most; ``steps``: local ones, by client.

    The first to finish count, equally fast ones in order of id. The round ends when as many as are wanted have come, when nobody is left
    to wait for, or at the deadline. A failure is noticed when the upload would have come.
    """
    seconds = {i: steps[i] * factor(i, federation, seed) * federation.step_seconds for i in cohort}
    failed = {i for i in cohort if federation.dropout > 0 and rng.uniform(seed, "dropout", round_, i) < federation.dropout}
    deadline = federation.deadline or math.inf
    in_time = sorted((seconds[i], i) for i in cohort if i not in failed and seconds[i] <= deadline)[:wanted]
    last = in_time[-1][0] if len(in_time) == wanted else min(deadline, max(seconds.values(), default=0.0))
    counted = {i for _, i in in_time}
    return Arrived(sorted(counted), sorted(failed), sorted(set(cohort) - failed - counted), last)


def factor(client: int, federation: FederationConfig, seed: int) -> float:
    """How many times as long as a client of the middle speed this one takes, in every round: log-normal, exp(s N(0, 1))."""
    if federation.speeds == 0:
        return 1.0
    drawn = torch.randn((), generator=rng.generator(seed, "speed", client), dtype=torch.float64)
    return math.exp(federation.speeds * drawn.item())
