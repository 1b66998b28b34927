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

    def __init__(self, folder: Path, timeout: float = TIMEOUT) -> None:
        self.folder, self.programs, self.logs, self.timeout, self.frozen = folder, [], [], timeout, 0.0

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

    def freeze(self, with_parent: bool) -> None:
        """Rank 0, and before it what has started it."""
        for pid in reversed(self.pids(0)[: 1 + with_parent]):
            os.kill(pid, signal.SIGSTOP)
        self.frozen = time.monotonic()

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


def by_file(started: Started) -> None:
    started.plain(f"file://{started.folder / 'meet'}")


def by_environment(started: Started) -> None:
    started.plain(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))


def by_torchrun(started: Started) -> None:
    started.program(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"])


def by_accelerate(started: Started) -> None:
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    started.program(["-m", "accelerate.commands.launch", *options])


def by_two_nodes(started: Started) -> None:
    """The launcher of one of two machines keeps the store."""
    port = free_port()
    for node in (0, 1):
        where = [f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}"]
        started.program(["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", *where])


KEEPS = "which keeps the store where the ranks have met and does not answer ("
MISSING = {
    by_file: "rank 0 (",
    by_environment: f"rank 0, {KEEPS}",
    by_torchrun: "rank 0 (",
    by_accelerate: "rank 0 (",
    by_two_nodes: f"the launcher at 127.0.0.1, {KEEPS}",  # it is frozen, too
}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Callable[[Started], None], Started]]:
    """Ranks by how they were started; rank 0 froze when they had met. They wait at the same time."""
    with contextlib.ExitStack() as stack:
        found = {}
        for start in MISSING:
            found[start] = started = Started(tmp_path_factory.mktemp(start.__name__))
            stack.callback(started.kill)
            start(started)
            started.pids(1)
            started.freeze(with_parent=start is by_two_nodes)
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("start", MISSING)
def test_rank_0_freezes(start: Callable[[Started], None], frozen: dict[Callable[[Started], None], Started]) -> None:
    started = frozen[start]
    assert f"error: rank 1 waited in 'metrics' for {MISSING[start]}" in started.error()
    assert time.monotonic() - started.frozen < TIMEOUT + PATIENCE / 2
    assert "Traceback" not in started.text().split("error: ")[0]


LAUNCHERS = {"rank 0": {}, "the launcher at 127.0.0.1": {"TORCHELASTIC_USE_AGENT_STORE": "True"}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str | int, Started]]:
    """One of two ranks, which soon gives up: its store, by who keeps it, has opened the port and does nothing more; or no other comes."""
    with contextlib.ExitStack() as stack:
        found: dict[str | int, Started] = {who: Started(tmp_path_factory.mktemp("alone"), timeout=2.0) for who in (*LAUNCHERS, 0, 1)}
        for who, started in found.items():
            stack.callback(started.kill)
            if isinstance(who, int):
                started.plain(ranks=(who,), init_method=f"file://{started.folder / 'meet'}")
            else:
                store = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                started.plain(ranks=(1,), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.getsockname()[1]), **LAUNCHERS[who])
        yield found


@pytest.mark.parametrize("who", LAUNCHERS)
def test_a_store_that_is_frozen_at_start(who: str, alone: dict[str | int, Started]) -> None:
    says = f"error: distributed: the ranks could not meet within 2 s ({who}, which keeps the store where the ranks meet"
    assert says in alone[who].error()
    assert alone[who].programs[0].wait(PATIENCE) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_does_not_come_is_named(rank: int, alone: dict[str | int, Started]) -> None:
    assert f"error: distributed: the ranks could not meet within 2 s (rank {1 - rank} did not come)" in alone[rank].error()
