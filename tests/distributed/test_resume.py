"""A resumed run equals the run that was never interrupted, also on another number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

# The totals of the ledger that a pause must not change; "checkpoint" and "resume" waits are those of each part of the run.
TOTALS = ("payload_bytes", "uplink_bytes", "downlink_bytes", "collectives")


def run(folder: Path, size: int, *more: str) -> Path:
    """Start or continue the run in ``folder`` on ``size`` ranks; checkpoints after rounds 2 and 4."""
    meeting = folder.with_name(f"{folder.name}-meet-{len(list(folder.parent.iterdir()))}")
    arguments = small.settings(folder, "checkpoint.every=2", "resume=auto", *more)
    values_of(run_ranks(meeting, size, train, arguments))
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Path]:
    """Four rounds in one go, by (world size, optimizer.state)."""
    folder = tmp_path_factory.mktemp("straight")
    cases = [(1, "persist"), (2, "persist"), (2, "reset")]
    return {
        (size, state): run(folder / f"{size}-{state}", size, "federation.rounds=4", f"optimizer.state={state}", *evaluated(state))
        for size, state in cases
    }


def evaluated(state: str) -> list[str]:
    """Runs with persistent optimizer states are evaluated too, after rounds 2 and 4; once is enough."""
    return ["evaluation.every=2"] if state == "persist" else []


def test_the_optimizer_state_matters_across_the_pause(straight: dict[tuple[int, str], Path]) -> None:
    # Otherwise a resume that lost it would go unnoticed: clients 4 and 5 train in round 2 and again in round 3.
    persist, reset = (small.metrics(straight[2, state]) for state in ("persist", "reset"))
    assert set(persist[1]["clients"]) & set(persist[2]["clients"])
    assert persist[2]["loss"] != reset[2]["loss"]


@pytest.mark.parametrize(
    ("first", "then", "state"), [(1, 1, "persist"), (2, 2, "persist"), (2, 1, "persist"), (1, 2, "persist"), (1, 2, "reset")]
)
def test_resumed_equals_uninterrupted(straight: dict[tuple[int, str], Path], tmp_path: Path, first: int, then: int, state: str) -> None:
    folder = run(tmp_path / "run", first, "federation.rounds=2", f"optimizer.state={state}", *evaluated(state))
    assert [row["round"] for row in small.metrics(folder)] == [1, 2]
    run(folder, then, "federation.rounds=4", f"optimizer.state={state}", *evaluated(state))

    unbroken = straight[then, state]
    rows, expected = small.metrics(folder), small.metrics(unbroken)
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert [row["clients"] for row in rows] == [row["clients"] for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    small.assert_same_tensors(folder, unbroken)
    if first == then:  # nothing at all differs then, to the last bit
        assert small.timeless(rows) == small.timeless(expected)
        wanted = small.final_tensors(unbroken)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in small.final_tensors(folder).items())

    result, reference = small.summary(folder), small.summary(unbroken)
    assert {key: result["comm"][key] for key in TOTALS} == {key: reference["comm"][key] for key in TOTALS}
    assert result["comm"]["bookkeeping"]["metrics"] == reference["comm"]["bookkeeping"]["metrics"]
    for accuracy, wanted in ((result["zero_shot"], reference["zero_shot"]), (result["accuracy"], reference["accuracy"])):
        assert accuracy == (wanted and pytest.approx(wanted, rel=1e-5))  # None where the run is not evaluated
    for row, other in zip(rows, expected, strict=True):
        assert row["accuracy"] == (other["accuracy"] and pytest.approx(other["accuracy"], rel=1e-5))
