"""Diagnostics and the accuracies of single clients: 1 rank = 2 ranks, and what was resumed = what was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

# The shipped weights: with random ones images are much alike, and margins are rounding errors. 4 of 5 clients are tested.
MORE = ["evaluation.diagnostics=true", "evaluation.every=2", "backbone.pretrained=auto", "data.clients=5", "evaluation.clients=4"]
ROUNDS = 4


def run(folder: Path, name: str, parts: list[tuple[int, int]]) -> Path:
    """A run of these (ranks, rounds so far)."""
    for ranks, rounds in parts:
        more = [*MORE, f"method.name={name}", "checkpoint.every=2", "resume=auto", f"federation.rounds={rounds}"]
        values_of(run_ranks(folder.with_name(f"{folder.name}-meet-{rounds}"), ranks, train, small.settings(folder, *more)))
    return folder


@pytest.fixture(scope="module", params=["pfedmma", "fedotp"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    plans = {"1": [(1, ROUNDS)], "2": [(2, ROUNDS)], "1-then-2": [(1, 2), (2, ROUNDS)]}
    return {name: run(folder / name, request.param, parts) for name, parts in plans.items()}


def diagnostics(run: Path) -> list[dict[str, Any]]:
    """Of each evaluation, of the end and of zero-shot."""
    summary = small.summary(run)
    found = [row["accuracy"] for row in small.metrics(run) if row["accuracy"]]
    return [accuracy["diagnostics"] for accuracy in (*found, summary["accuracy"], summary["zero_shot"])]


@pytest.mark.parametrize("other", ["2", "1-then-2"])
def test_the_same_diagnostics(runs: dict[str, Path], other: str) -> None:
    alone, together = diagnostics(runs["1"]), diagnostics(runs[other])
    assert len(alone) == len(together) == ROUNDS // 2 + 2
    for one, two in zip(alone, together, strict=True):
        assert [name for name, value in two.items() if value is None] == [name for name, value in one.items() if value is None]
        known = {name: value for name, value in one.items() if value is not None}
        assert {name: two[name] for name in known} == pytest.approx(known, rel=1e-5)
    assert alone[-2] == alone[-3] != alone[0], "the last round's; another round's differ"


@pytest.mark.parametrize("other", ["2", "1-then-2"])
def test_the_same_accuracies_of_each_client(runs: dict[str, Path], other: str) -> None:
    for row, two in zip(small.metrics(runs["1"]), small.metrics(runs[other]), strict=True):
        assert ("per_client" in row) == (row["accuracy"] is not None)
        assert row.get("per_client") == two.get("per_client")
    last, summary = small.metrics(runs["1"])[-1]["per_client"], small.summary(runs["1"])["per_client"]
    for name in ("local", "base", "novel"):
        assert last[name] == [client[name] for client in summary if client["id"] in last["clients"]]
    assert len(last["clients"]) == 4 and len(set(last["local"])) > 1


def test_what_is_added_up_is_bookkeeping_and_bounded(runs: dict[str, Path]) -> None:
    """On top of the loss and of accuracies [5, 4]: 6 sums, 60 base test images squared, how many clients; fp64. A client sends no more."""
    for row in small.metrics(runs["2"]):
        tested = (6 + 60**2 + 1 + 5 * 4) * 8 if row["accuracy"] else 0
        assert row["comm"]["bookkeeping"]["metrics"] == {"collectives": 3 if tested else 1, "payload_bytes": 16 + tested}
        assert row["comm"]["uplink_bytes"] == len(row["clients"]) * row["comm"]["shared_parameters"] * 4


def test_zero_shot_is_measured_again_for_who_asks_for_its_diagnostics_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch)
    plain = ["evaluation.every=1", "backbone.pretrained=auto", "data.clients=5", "federation.rounds=1"]
    train([], small.settings(tmp_path / "run", *plain, "evaluation.per_client=4"))
    (first,) = small.metrics(tmp_path / "run")
    assert "diagnostics" not in first["accuracy"] and "per_client" not in first, "five clients are more than four"
    train([], [f"resume={tmp_path / 'run'}", "federation.rounds=2", "evaluation.diagnostics=true"])
    summary = small.summary(tmp_path / "run")
    assert small.metrics(tmp_path / "run")[0] == first
    assert summary["zero_shot"]["diagnostics"]["ece"] > 0 and summary["accuracy"]["diagnostics"]["shared_cka"] > 0
