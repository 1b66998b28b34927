"""SIGTERM and SIGINT under torchrun: the round is kept, all processes end, and the run goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import dying, small
from tests.support.ranks import run_ranks, train, values_of

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def launched(run: Path) -> Iterator[subprocess.Popen[str]]:
    """A launcher of two ranks that have done a round, in a process group of its own, as a shell starts it."""
    settings = small.settings(run, "federation.rounds=100000", "checkpoint.every=0", "resume=auto")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=3"]
    nobody_dies = run.with_name("mark")
    nobody_dies.touch()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [*launcher, dying.__file__, "0", str(nobody_dies), *settings],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        deadline = time.monotonic() + small.PATIENCE
        while not (run / "metrics.jsonl").exists() or not small.metrics(run):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        for pid in processes_of(run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_of(run: Path) -> list[int]:
    """Launcher and ranks: whose command line names the run's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"run_dir={run}".encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("send", "number"),
    [
        (os.kill, signal.SIGTERM),  # as a batch system
        (os.killpg, signal.SIGINT),  # as Ctrl-C at a terminal
    ],
    ids=["SIGTERM to the launcher", "SIGINT to its process group"],
)
def test_a_launcher_is_asked_to_end(tmp_path: Path, send: Callable[[int, int], None], number: signal.Signals) -> None:
    run = tmp_path / "run"
    with launched(run) as process:
        assert len(processes_of(run)) == 3
        send(process.pid, number)
        out, err = process.communicate(timeout=small.PATIENCE)
        assert processes_of(run) == [], "none is left behind"
    rounds = [row["round"] for row in small.metrics(run)]
    done = len(rounds)
    assert rounds == list(range(1, done + 1))
    assert f"interrupted by {number.name} after round {done} of 100000, to be continued: resume=auto" in out
    assert "error:" not in err and "forcefully exiting" not in err
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"round-{done:06d}"]

    for folder in (run, tmp_path / "unbroken"):
        settings = small.settings(folder, f"federation.rounds={done + 1}", "checkpoint.every=0", "resume=auto")
        values_of(run_ranks(tmp_path / f"meet-{folder.name}", 2, train, settings))
    assert small.timeless(small.metrics(run)) == small.timeless(small.metrics(tmp_path / "unbroken"))
