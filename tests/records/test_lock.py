"""A run folder has one owner: the second process is refused, and a process that ends leaves no lock behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pfedmma.records import lock
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small
from tests.support.holders import holder, kill
from tests.support.programs import python

HOLD = """
import sys
from pathlib import Path
from pfedmma.records import lock
with lock.owned(Path(sys.argv[1])):
"""


def test_the_second_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    first = holder(HOLD, tmp_path / "run")
    try:
        for settings in (small.settings(tmp_path / "run"), small.settings(tmp_path / "run", "resume=auto")):
            with pytest.raises(
                UserError, match=rf"^run_dir: .*run is in use by process {first.pid} on \S+ since .*; wait for it, end it, or"
            ):
                main(settings)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [lock.NAME]
    finally:
        kill(first)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    first = holder(HOLD, tmp_path / "run")
    kill(first)
    assert (tmp_path / "run" / lock.NAME).exists()  # the file alone
    main(small.settings(tmp_path / "run", "federation.rounds=1"))
    assert not (tmp_path / "run" / lock.NAME).exists() and len(small.metrics(tmp_path / "run")) == 1


def test_two_that_begin_at_once(tmp_path: Path) -> None:
    """Neither has written anything yet: one does the run, the other is refused; nothing is mixed."""
    command = ["-m", "pfedmma.train", *small.settings(tmp_path / "run", "federation.rounds=3")]
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda seed: python([*command, f"seed={seed}"]), (1, 2)))
    said = [ended.stderr for ended in both]
    assert sorted(ended.returncode for ended in both) == [0, 2]
    assert [row["round"] for row in small.metrics(tmp_path / "run")] == [1, 2, 3]
    assert any("is in use by process" in text or "already holds a run" in text for text in said), said


def test_nothing_is_left_of_a_run_that_ends_before_its_first_round(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        main(small.settings(tmp_path / "a" / "run", "data.clients=61"))
    assert not (tmp_path / "a").exists()


def test_the_end_of_an_owner_between_opening_and_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is gone by then: another one is made, or two processes would each hold a file of that name."""
    real, calls = fcntl.flock, []

    def flock(handle: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / "run" / lock.NAME).unlink()
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.owned(tmp_path / "run"):
        assert len(calls) == 2 and (tmp_path / "run" / lock.NAME).exists()


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.owned(tmp_path / "run"):
        pass
    assert "file system without locks" in capsys.readouterr().err


def test_ranks_whose_launcher_is_gone_end(tmp_path: Path) -> None:
    """A launcher that is killed leaves its ranks behind; they finish their round, keep it and end, and the run can be gone on with."""
    run = tmp_path / "run"
    settings = small.settings(run, "federation.rounds=100000", "checkpoint.every=0")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "pfedmma.train"]
    process = subprocess.Popen(
        [*launcher, *settings], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until(lambda: (run / "metrics.jsonl").exists() and len(small.metrics(run)) > 0)
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not (run / lock.NAME).exists())
        rounds = len(small.metrics(run))
        assert rounds < 100000 and any((run / "checkpoints").iterdir())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    main(["resume=" + str(run), f"federation.rounds={rounds + 1}"])
    assert [row["round"] for row in small.metrics(run)] == list(range(1, rounds + 2))


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 250
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
