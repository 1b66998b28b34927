"""Whose upload counts, and how long a round takes, by hand."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from pfedmma import rng
from pfedmma.engine.arrivals import Arrived, arrivals, factor
from pfedmma.engine.federation import FederationConfig

STEPS = {2: 3, 4: 1, 5: 2, 7: 2, 9: 4}  # local ones, by client
COHORT = list(STEPS)


def arrived(wanted: int = 5, cohort: list[int] = COHORT, **settings: Any) -> Arrived:
    more = {"participation": 0.5} if "over_selection" in settings else {}
    return arrivals(cohort, wanted, STEPS, FederationConfig(**settings, **more), seed=0, round_=3)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients 2 and 7 draw below a half, and nobody else."""

    def uniform(seed: int, purpose: str, round_: int, client: int) -> float:
        assert (seed, purpose, round_) == (0, "dropout", 3)
        return {2: 0.1, 7: 0.4999}.get(client, 0.5)

    monkeypatch.setattr(rng, "uniform", uniform)


def test_everybody_counts_unless_something_else_is_asked_for() -> None:
    assert arrived() == Arrived(COHORT, [], [], 4.0) and arrived().cohort == COHORT and arrived().lost == []
    assert arrived(step_seconds=0.25).seconds == 1.0


def test_nobody_takes_no_time() -> None:
    assert arrived(cohort=[], deadline=9.0, speeds=0.5) == Arrived([], [], [], 0.0)


def test_who_needs_longer_than_the_deadline_is_late() -> None:
    """Clients 2 and 9 take 3 and 4 steps; the round then lasts until the deadline, but else no longer than its slowest."""
    assert arrived(deadline=2.5) == Arrived([4, 5, 7], [], [2, 9], 2.5)
    assert arrived(deadline=3.0) == Arrived([2, 4, 5, 7], [], [9], 3.0)  # in time is in time
    assert arrived(deadline=5.0) == Arrived(COHORT, [], [], 4.0)
    assert arrived(deadline=0.5) == Arrived([], [], COHORT, 0.5)
    assert arrived(deadline=2.5, step_seconds=0.1) == Arrived(COHORT, [], [], pytest.approx(0.4))


@pytest.mark.parametrize(
    ("wanted", "counted", "late", "seconds"),
    [
        (1, [4], [2, 5, 7, 9], 1.0),
        (2, [4, 5], [2, 7, 9], 2.0),  # 5 and 7 are equally fast: in order of id
        (3, [4, 5, 7], [2, 9], 2.0),
        (4, [2, 4, 5, 7], [9], 3.0),
    ],
)
def test_the_first_wanted_to_finish_count(wanted: int, counted: list[int], late: list[int], seconds: float) -> None:
    assert arrived(wanted, over_selection=1.3) == Arrived(counted, [], late, seconds)


def test_a_round_that_has_what_it_wants_does_not_wait_for_its_deadline() -> None:
    assert arrived(3, over_selection=1.3, deadline=2.5) == Arrived([4, 5, 7], [], [2, 9], 2.0)
    assert arrived(4, over_selection=1.3, deadline=2.5) == Arrived([4, 5, 7], [], [2, 9], 2.5)


@pytest.mark.usefixtures("failing")
def test_who_fails_is_lost_and_noticed_when_its_upload_would_have_come() -> None:
    assert arrived(dropout=0.5) == Arrived([4, 5, 9], [2, 7], [], 4.0)
    assert arrived(dropout=0.5).lost == [2, 7] and arrived(dropout=0.5).cohort == COHORT
    assert arrived(dropout=0.45) == Arrived([4, 5, 7, 9], [2], [], 4.0)
    assert arrived(cohort=[2, 4, 5], dropout=0.5) == Arrived([4, 5], [2], [], 3.0)  # nothing is heard of client 2 for three seconds
    assert arrived(dropout=0.5, deadline=2.5) == Arrived([4, 5], [2, 7], [9], 2.5)
    assert arrived(2, dropout=0.5, over_selection=1.3) == Arrived([4, 5], [2, 7], [9], 2.0)  # one who fails takes nobody's place
    assert arrived(cohort=[2, 7], dropout=0.5) == Arrived([], [2, 7], [], 3.0)


def test_the_share_that_fails() -> None:
    """Of 20,000 participants, .2; the error is .0028. Each round has its own."""
    federation, everybody = FederationConfig(dropout=0.2), range(100)
    steps = dict.fromkeys(everybody, 1)
    rounds = [arrivals(everybody, 100, steps, federation, 0, round_).failed for round_ in range(1, 201)]
    assert abs(sum(map(len, rounds)) / 20_000 - 0.2) < 4 * 0.0028
    assert rounds[0] != rounds[1] and rounds[0] != arrivals(everybody, 100, steps, federation, 1, 1).failed


def test_speeds_are_log_normal_and_kept() -> None:
    """Of 4,000 clients: the logarithm has mean 0 and deviation s, with errors s / sqrt(4000) and s / sqrt(8000)."""
    half, one = ([math.log(factor(i, FederationConfig(speeds=s), 0)) for i in range(4000)] for s in (0.5, 1.0))
    assert abs(statistics.fmean(half)) < 4 * 0.5 / 4000**0.5
    assert abs(statistics.stdev(half) - 0.5) < 4 * 0.5 / 8000**0.5
    assert one == pytest.approx([2 * value for value in half])
    federation = FederationConfig(speeds=0.5, step_seconds=2.0)
    for round_ in (1, 2):  # a slow client stays slow
        assert arrivals([5], 1, STEPS, federation, 0, round_).seconds == pytest.approx(2 * 2 * math.exp(half[5]))
    assert factor(5, FederationConfig(), 0) == 1.0 != factor(5, FederationConfig(speeds=0.5), 1)
