"""SIGKILL of a rank at any moment: started again, the run ends as if nothing had been.

Each seed is a moment (`dying.Moment`): twenty with forked ranks, which the test starts again, and through ``torchrun --max-restarts``; all
but a few of them take long together.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import dying, small
from tests.support.ranks import run_ranks, train, values_of

ROOT = Path(__file__).resolve().parents[2]


def seeds(*usual: int) -> list[Any]:
    """Twenty, of which all but the ``usual`` ones take long."""
    return [pytest.param(seed, marks=() if seed in usual else pytest.mark.slow) for seed in range(20)]


TOTALS = ("payload_bytes", "uplink_bytes", "downlink_bytes", "ring_bytes_per_rank", "collectives")


class Unbroken(NamedTuple):
    """A run in which nobody dies, and how often each rank came to each place."""

    run: Path
    calls: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    ranks = values_of(run_ranks(folder / "meet", 2, train_and_count, small.settings(folder / "run", *dying.SETTINGS)))
    return Unbroken(folder / "run", {place: (ranks[0][place], ranks[1][place]) for place in ranks[0]})


@pytest.fixture(scope="module")
def unbroken(counted: Unbroken) -> Path:
    return counted.run


def train_and_count(meeting: list[str], settings: list[str]) -> dict[str, int]:
    bombs = dying.count()
    train(meeting, settings)
    return {place: bomb.calls for place, bomb in bombs.items()}


def test_moments_are_drawn_over_the_whole_run(counted: Unbroken) -> None:
    """From the first time that a rank comes to a place to the last."""
    assert counted.calls == dying.CALLS


def as_unbroken(run: Path, unbroken: Path) -> None:
    """Every round once, the same numbers to the last bit, the same tensors, and nothing left behind."""
    assert small.timeless(small.metrics(run)) == small.timeless(small.metrics(unbroken))
    small.assert_same_tensors(run, unbroken)
    ours, theirs = (small.timeless(small.summary(folder)) for folder in (run, unbroken))
    for key in ("accuracy", "zero_shot", "per_client"):
        assert ours[key] == theirs[key]
    assert {key: ours["comm"][key] for key in TOTALS} == {key: theirs["comm"][key] for key in TOTALS}
    assert files_of(run) == files_of(unbroken)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def train_and_die(meeting: list[str], settings: list[str], seed: int, mark: str) -> None:
    dying.arm(dying.Moment.from_seed(seed), Path(mark))
    train(meeting, settings)


@pytest.mark.parametrize("seed", seeds(1, 6))
def test_started_again(unbroken: Path, tmp_path: Path, seed: int) -> None:
    settings, mark = small.settings(tmp_path / "run", *dying.SETTINGS, "resume=auto"), tmp_path / "mark"
    ended = run_ranks(tmp_path / "meet", 2, train_and_die, settings, seed, str(mark))
    assert mark.exists(), f"{dying.Moment.from_seed(seed)} never came"
    victim = dying.Moment.from_seed(seed).victim
    assert ended[victim].status == -signal.SIGKILL
    survivor = ended[1 - victim]
    if survivor.status == 0:
        assert victim == 0 and len(small.metrics(tmp_path / "run")) == 4, "there was nothing left for it to do"
    else:
        assert survivor.status == 2 and f"for rank {victim}" in survivor.stderr and "Traceback" not in survivor.stderr, survivor.stderr

    values_of(run_ranks(tmp_path / "meet-again", 2, train_and_die, settings, seed, str(mark)))
    as_unbroken(tmp_path / "run", unbroken)


@pytest.mark.parametrize("seed", seeds(0))
def test_torchrun_starts_again(unbroken: Path, tmp_path: Path, seed: int) -> None:
    settings, mark = small.settings(tmp_path / "run", *dying.SETTINGS, "resume=auto"), tmp_path / "mark"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    command = [*launcher, dying.__file__, str(seed), str(mark), *settings]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=small.PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert mark.exists(), f"{dying.Moment.from_seed(seed)} never came"
    assert len((tmp_path / "mark.starts").read_text()) == 4, "each rank was started again once: the new ones meet at the first try"
    assert "forcefully exiting" not in ended.stderr, "the rank that was left ends by itself, before the launcher loses patience"
    as_unbroken(tmp_path / "run", unbroken)
