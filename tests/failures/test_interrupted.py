"""SIGTERM, SIGINT and SIGUSR1: the round is finished and kept, the run ends well, and goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pfedmma.comm import world
from pfedmma.engine import rounds
from pfedmma.records.folder import RunFolder
from pfedmma.system.signals import Interruption
from pfedmma.train import main as train_main
from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

FOUR_ROUNDS = ("federation.rounds=4", "checkpoint.every=4", "evaluation.every=2")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    values_of(run_ranks(folder / "meet", 2, train, small.settings(folder / "run", *FOUR_ROUNDS)))
    return folder / "run"


def train_and_be_asked_in_round_2(meeting: list[str], settings: list[str], asked: int, number: int) -> None:
    """Rank ``asked`` gets the signal during its local training."""
    real, calls = rounds.train_cohort, 0

    def train_cohort(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and int(os.environ["RANK"]) == asked:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # launchers pass on what a process group has got already
        return real(*args)

    rounds.train_cohort = train_cohort
    train(meeting, settings)


@pytest.mark.parametrize(("asked", "number"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (0, signal.SIGINT), (1, signal.SIGUSR1)])
def test_one_rank_is_asked(unbroken: Path, tmp_path: Path, asked: int, number: int) -> None:
    settings = small.settings(tmp_path / "run", *FOUR_ROUNDS)
    values_of(run_ranks(tmp_path / "meet", 2, train_and_be_asked_in_round_2, settings, asked, number))
    assert [row["round"] for row in small.metrics(tmp_path / "run")] == [1, 2]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["round-000002"]
    assert not (tmp_path / "run" / "summary.json").exists(), "the run is not finished"

    values_of(run_ranks(tmp_path / "meet-again", 2, train, [*settings, "resume=auto"]))
    assert small.timeless(small.metrics(tmp_path / "run")) == small.timeless(small.metrics(unbroken))
    # The collectives of one checkpoint more and of a second start stand in the totals of the ledger.
    ours, theirs = (small.timeless(small.summary(run)) for run in (tmp_path / "run", unbroken))
    for key in ("accuracy", "zero_shot", "per_client"):
        assert ours[key] == theirs[key]


def start(run_dir: Path) -> subprocess.Popen[str]:
    """A run in a process of its own that has done its first round."""
    settings = small.settings(run_dir, "federation.rounds=100000", "checkpoint.every=0")
    process = subprocess.Popen(
        [sys.executable, "-m", "pfedmma.train", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + small.PATIENCE
    while not (run_dir / "metrics.jsonl").exists() or not small.metrics(run_dir):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr
        time.sleep(0.05)
    return process


def test_the_process_ends_well_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = start(tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=small.PATIENCE)
    assert process.returncode == 0, err
    done = len(small.metrics(tmp_path / "run"))
    assert f"interrupted by SIGTERM after round {done} of 100000, to be continued: resume=auto" in out
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"round-{done:06d}"]


def test_before_the_rounds_it_ends_at_once(tmp_path: Path) -> None:
    asked = "import os, signal, sys; from pfedmma import train; real = train.assemble\n"
    asked += "train.assemble = lambda *args: (os.kill(os.getpid(), signal.SIGTERM), real(*args))[1]; train.main(sys.argv[1:])"
    command = [sys.executable, "-c", asked, *small.settings(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=small.PATIENCE)
    assert ended.returncode == -signal.SIGTERM
    assert ended.stderr == ""
    assert not RunFolder(tmp_path / "run").holds_a_run, "but for the lock, which ends with the process"
    train_main(small.settings(tmp_path / "run", "federation.rounds=1"))


def test_a_batch_systems_signal_counts_from_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is sent once only: what comes before the first round ends the run after that round."""

    def open_world(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR1)
        return world.open_world(*args)

    monkeypatch.setattr("pfedmma.train.open_world", open_world)
    train_main(small.settings(tmp_path / "run", *FOUR_ROUNDS))
    assert [row["round"] for row in small.metrics(tmp_path / "run")] == [1]


def test_a_second_request_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    clock = [100.0]
    monkeypatch.setattr("pfedmma.system.signals.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("pfedmma.system.signals.os.kill", lambda pid, number: sent.append(number))
    earlier = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        interruption.rounds_begin()
        interruption._note(signal.SIGTERM, None)
        clock[0] += 1
        interruption._note(signal.SIGTERM, None)
        assert interruption.asked and interruption.by == "SIGTERM" and not sent, "the same request, passed on"
        clock[0] += 10
        interruption._note(signal.SIGTERM, None)
        assert sent == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == earlier
