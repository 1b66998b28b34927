"""A process that is frozen, and with it perhaps the store in which the ranks have met: the others end within ``distributed.timeout``."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 6.0
PATIENCE = 600.0  # seconds a crowded machine may take to start, and to end on top of the timeout; without a bound it is 400 and more
SUMMING = "tests.failures.summing"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Started:
    """Two ranks, however they were started, and what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.programs, self.logs, self.timeout = folder, [], [], TIMEOUT

    def program(self, words: list[str], init_method: str = "env://", **variables: str) -> subprocess.Popen[bytes]:
        """A process in a session of its own that starts `SUMMING`."""
        log = self.folder / f"log-{len(self.logs)}"
        self.logs.append(log)
        outside = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")}
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**outside, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **variables}
        command = [sys.executable, *words, "-m", SUMMING, str(self.folder), str(self.timeout), init_method]
        with open(log, "wb") as file:
            program = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        self.programs.append(program)
        return program

    def plain(self, init_method: str = "env://", ranks: tuple[int, ...] = (0, 1), **variables: str) -> None:
        """Without a launcher."""
        for rank in ranks:
            own = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
            self.program([], init_method, **own, **variables)

    def pids(self, rank: int) -> tuple[int, int]:
        """Process ids of a rank and of what has started it, as soon as it has summed once."""
        self.until(lambda: (self.folder / f"rank-{rank}").exists(), "the ranks have met")
        own, parent = (self.folder / f"rank-{rank}").read_text().split()
        return int(own), int(parent)

    def error(self) -> str:
        """The first error that a rank says."""
        self.until(lambda: "error: " in self.text(), "a rank has ended")
        return next(line for line in self.text().splitlines() if "error: " in line)

    def text(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in self.logs)

    def until(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < end, f"waited {PATIENCE} s until {what}: {self.text()}"
            time.sleep(0.05)

    def kill(self) -> None:
        marked = [int(pid) for mark in self.folder.glob("rank-?") for pid in mark.read_text().split()[:1]]
        for pid in [program.pid for program in self.programs] + marked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for program in self.programs:
            program.wait()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    ranks = Started(tmp_path)
    yield ranks
    ranks.kill()


def by_file(started: Started) -> None:
    started.plain(f"file://{started.folder / 'meet'}")


def by_environment(started: Started) -> None:
    started.plain(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))


def by_torchrun(started: Started) -> None:
    started.program(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"])


def by_accelerate(started: Started) -> None:
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    started.program(["-m", "accelerate.commands.launch", *options])


KEEPS = "which keeps the store where the ranks have met and does not answer ("


@pytest.mark.parametrize(
    ("start", "missing"),
    [(by_file, "rank 0 ("), (by_environment, f"rank 0, {KEEPS}"), (by_torchrun, "rank 0 ("), (by_accelerate, "rank 0 (")],
)
def test_rank_0_freezes(start: Callable[[Started], None], missing: str, started: Started) -> None:
    start(started)
    started.pids(1)
    os.kill(started.pids(0)[0], signal.SIGSTOP)
    frozen = time.monotonic()
    assert f"error: rank 1 waited in 'metrics' for {missing}" in started.error()
    assert time.monotonic() - frozen < TIMEOUT + PATIENCE / 2
    assert "Traceback" not in started.text().split("error: ")[0]


def test_node_0_of_two_freezes(started: Started) -> None:
    """The launcher of one of two machines keeps the store."""
    port = free_port()
    for node in (0, 1):
        where = [f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}"]
        started.program(["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *where])
    started.pids(1)
    for pid in reversed(started.pids(0)):
        os.kill(pid, signal.SIGSTOP)
    assert f"error: rank 1 waited in 'metrics' for the launcher at 127.0.0.1, {KEEPS}" in started.error()


@pytest.mark.parametrize(("launcher", "who"), [({}, "rank 0"), ({"TORCHELASTIC_USE_AGENT_STORE": "True"}, "the launcher at 127.0.0.1")])
def test_a_store_that_is_frozen_at_start(launcher: dict[str, str], who: str, started: Started) -> None:
    """Its process has opened the port, and does nothing more."""
    started.timeout = 2.0
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        started.plain(ranks=(1,), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(frozen.getsockname()[1]), **launcher)
        error = started.error()
    assert f"error: distributed: the ranks could not meet within 2 s ({who}, which keeps the store where the ranks meet" in error
    assert started.programs[0].wait(PATIENCE) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_does_not_come_is_named(rank: int, started: Started) -> None:
    started.timeout = 2.0
    started.plain(ranks=(rank,), init_method=f"file://{started.folder / 'meet'}")
    assert f"error: distributed: the ranks could not meet within 2 s (rank {1 - rank} did not come)" in started.error()
