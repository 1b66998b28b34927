"""Poisson cohorts, drop-outs, speeds, a deadline and over-selection: 1 = 2 ranks, and a resumed run goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

LOST = ["federation.dropout=0.3", "federation.speeds=0.5", "optimizer.state=persist", "federation.clients_per_pass=2"]
WAYS = {
    "poisson": ["seed=17", "federation.sampling=poisson", "federation.participation=0.3", "federation.deadline=4"],
    "more": ["federation.participation=0.4", "federation.over_selection=1.6", "method.name=pfedmoap", "method.pfedmoap.context=2"],
}
ROUNDS = 6
TOTALS = ("payload_bytes", "uplink_bytes", "downlink_bytes", "collectives", "wasted_bytes")


@pytest.fixture(scope="module", params=WAYS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run on 1 and on 2 ranks, and with a pause on 1 rank after round 3."""
    folder = tmp_path_factory.mktemp(request.param)
    for name, parts in {"1": [(1, ROUNDS)], "2": [(2, ROUNDS)], "1-1": [(1, 3), (1, ROUNDS)]}.items():
        for size, rounds in parts:
            more = [*WAYS[request.param], *LOST, "evaluation.every=3", "evaluation.clients=3", "checkpoint.every=3", "resume=auto"]
            arguments = small.settings(folder / name, *more, f"federation.rounds={rounds}")
            values_of(run_ranks(folder / f"meet-{name}-{rounds}", size, train, arguments))
    return {name: folder / name for name in ("1", "2", "1-1")}


def test_the_runs_say_something(runs: dict[str, Path]) -> None:
    """Some fail, some are late; where that can be, a round has nobody, and another no upload."""
    rows, summary = small.metrics(runs["1"]), small.summary(runs["1"])
    assert all(summary["lost"].values()) and summary["comm"]["wasted_bytes"] > 0
    if summary["config"]["federation.sampling"] == "poisson":
        assert any(not row["clients"] for row in rows)
        assert any(row["clients"] and not row["comm"]["payload_bytes"] for row in rows)  # nothing has come
    else:
        assert {len(row["clients"]) for row in rows} == {5}
    assert len({row["simulated_seconds"] for row in rows}) >= 3


def test_two_ranks_do_the_same(runs: dict[str, Path]) -> None:
    alone, together = small.metrics(runs["1"]), small.metrics(runs["2"])
    for one, other in zip(alone, together, strict=True):
        assert [other[name] for name in ("clients", "samples", "lost")] == [one[name] for name in ("clients", "samples", "lost")]
        assert other["simulated_seconds"] == one["simulated_seconds"]
        assert other["loss"] == (one["loss"] and pytest.approx(one["loss"], rel=1e-5))
        assert {name: other["comm"][name] for name in TOTALS} == {name: one["comm"][name] for name in TOTALS}
    assert together[-1]["accuracy"] == pytest.approx(alone[-1]["accuracy"], rel=1e-5)
    small.assert_same_tensors(runs["2"], runs["1"])


def test_a_resumed_run_goes_on_exactly(runs: dict[str, Path]) -> None:
    straight, paused = runs["1"], runs["1-1"]
    assert small.timeless(small.metrics(paused)) == small.timeless(small.metrics(straight))
    got, wanted = small.final_tensors(paused), small.final_tensors(straight)
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    totals, others = small.summary(straight), small.summary(paused)
    for name in ("lost", "simulated_seconds"):
        assert others[name] == totals[name]
    assert {name: others["comm"][name] for name in TOTALS} == {name: totals["comm"][name] for name in TOTALS}
