"""A rank that is killed takes the run down within the timeout, and the run goes on from its last checkpoint as if nothing had been."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from pfedmma.engine import rounds
from pfedmma.records.checkpoint import manifest, write
from pfedmma.system.shared_file import SharedFile
from tests.support import small
from tests.support.ranks import Ended, run_ranks, train, values_of

# Checkpoints after rounds 2 and 4; the run dies in round 4, so that round 3 stands in metrics.jsonl and is trained again.
FOUR_ROUNDS = ("federation.rounds=4", "checkpoint.every=2", "evaluation.every=0")

ROWS = {0: 5, 1: 6}  # the first in round 4: cohorts 1 2 5, 4 5 6, 3 4 5, 0 2 3, of which rank 0 trains 2, 4 6, 4, 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_be_killed_in_round_4(meeting: list[str], settings: list[str], victim: int) -> None:
    """Rank ``victim`` is gone after its local training, before it hands anything over."""
    real, calls = rounds.train_cohort, 0

    def train_cohort(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*args)
        if calls == 4 and int(os.environ["RANK"]) == victim:
            die()
        return result

    rounds.train_cohort = train_cohort
    train(meeting, settings)


def train_and_be_killed_in_checkpoint(meeting: list[str], settings: list[str], victim: int) -> None:
    """Rank ``victim`` is gone when half of its last file of the second checkpoint is on disk."""
    real, calls = write._write_shard, 0
    last = {0: 4, 1: 2}[victim]  # rank 0 writes clients and server each time, rank 1 its clients

    def write_shard(path: Path, tensors: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        real(path, tensors)
        if calls == last and int(os.environ["RANK"]) == victim:
            os.truncate(path, path.stat().st_size // 2)
            die()

    write._write_shard = write_shard
    train(meeting, settings)


def train_and_be_killed_in_a_row(meeting: list[str], settings: list[str], victim: int) -> None:
    """Rank ``victim`` is gone in round 4 when half of the numbers that a client keeps to itself are where other ranks read them."""
    real, calls = SharedFile.write, 0

    def half(self: SharedFile, start: int, numbers: Tensor) -> None:
        nonlocal calls
        calls += numbers.is_floating_point()
        dies = calls == ROWS[victim] and int(os.environ["RANK"]) == victim
        real(self, start, numbers[: len(numbers) // 2] if dies else numbers)
        if dies:
            die()

    SharedFile.write = half
    train(meeting, settings)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    values_of(run_ranks(folder / "meet", 2, train, small.settings(folder / "run", *FOUR_ROUNDS)))
    return folder / "run"


@pytest.mark.parametrize(
    ("work", "victim", "recorded"),
    [
        (train_and_be_killed_in_round_4, 1, [1, 2, 3]),
        (train_and_be_killed_in_round_4, 0, [1, 2, 3]),
        (train_and_be_killed_in_a_row, 1, [1, 2, 3]),
        (train_and_be_killed_in_a_row, 0, [1, 2, 3]),
        (train_and_be_killed_in_checkpoint, 1, [1, 2, 3, 4]),
        (train_and_be_killed_in_checkpoint, 0, [1, 2, 3, 4]),
    ],
)
def test_killed_and_resumed(unbroken: Path, tmp_path: Path, work: Callable[..., None], victim: int, recorded: list[int]) -> None:
    settings = small.settings(tmp_path / "run", *FOUR_ROUNDS)
    ended = run_ranks(tmp_path / "meet", 2, work, settings, victim)

    assert ended[victim].status == -signal.SIGKILL
    ends_by_itself(ended[1 - victim], victim)
    assert [row["round"] for row in small.metrics(tmp_path / "run")] == recorded
    assert manifest.rounds(tmp_path / "run" / "checkpoints") == [2], "the half-written checkpoint does not count as one"

    values_of(run_ranks(tmp_path / "meet-again", 2, train, [*settings, "resume=auto"]))
    assert small.timeless(small.metrics(tmp_path / "run")) == small.timeless(small.metrics(unbroken))
    # Nothing of the broken checkpoint is left behind.
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["round-000002", "round-000004"]


def ends_by_itself(survivor: Ended, victim: int) -> None:
    """The rank that was left alone stops with the one line that a user needs."""
    assert survivor.status == 2, survivor.stderr
    errors = [line for line in survivor.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and f"for rank {victim} (" in errors[0] and "resume=auto" in errors[0]
    assert "Traceback" not in survivor.stderr


def wait_for_nobody(meeting: list[str], settings: list[str]) -> None:
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    train(meeting, [*settings, "distributed.timeout=1"])


def test_a_rank_that_never_comes(tmp_path: Path) -> None:
    """One of two ranks is started; it gives up with a line that says why, and writes nothing."""
    (alone,) = run_ranks(tmp_path / "meet", 1, wait_for_nobody, small.settings(tmp_path / "run"))
    assert "Traceback" not in alone.stderr
    assert alone.status == 2
    assert len([line for line in alone.stderr.splitlines() if line.startswith("error:")]) == 1
    assert not (tmp_path / "run").exists()
