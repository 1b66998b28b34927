"""Several ranks on this machine for a test: gloo, and a file as the meeting point, so that no port can collide.

Ranks are forked from a server that has imported torch once; starting one costs milliseconds, not seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from pfedmma.data.sources import shapes
from pfedmma.system.errors import run_main
from pfedmma.train import main
from tests.support.small import PATIENCE, RANKS_DRAW

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.server"])
LIMIT = PATIENCE  # seconds; a rank that is still alive then hangs
GRACE = 200.0  # seconds; what is still alive so long after another rank has failed will not end by itself
TIMEOUT = 0.8 * LIMIT  # seconds of `distributed.timeout`, where a test says nothing else: before that a rank says for whom it waits


@dataclass(frozen=True)
class Ended:
    """How a rank ended. ``status``: its exit status, negative for a signal, None if it was still alive after `LIMIT`."""

    status: int | None
    value: Any
    stderr: str


def run_ranks(folder: Path, size: int, work: Callable[..., Any], *args: Any) -> list[Ended]:
    """Call ``work(meeting, *args)`` on ``size`` ranks; ``meeting`` are the settings by which they find each other.

    ``work`` must be a function of a module. A `UserError` ends a rank as it ends the program: one line on stderr, status 2.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = [f"distributed.init_method=file://{(folder / 'rendezvous').resolve()}", f"distributed.timeout={TIMEOUT}"]
    channels, processes = [], []
    for rank in range(size):
        receive, send = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_rank, args=(rank, size, folder / f"stderr-{rank}", send, work, (meeting, *args)))
        process.start()
        send.close()
        channels.append(receive)
        processes.append(process)
    try:
        values = _values(processes, channels)
        statuses = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = [(folder / f"stderr-{rank}").read_text() for rank in range(size)]
    return [Ended(*each) for each in zip(statuses, values, said, strict=True)]


def values_of(ended: Sequence[Ended]) -> list[Any]:
    """What ``work`` returned on each rank; all must have ended well."""
    assert [rank.status for rank in ended] == [0] * len(ended), "\n".join(rank.stderr for rank in ended)
    return [rank.value for rank in ended]


def train(meeting: list[str], settings: list[str]) -> None:
    """The main job, for `run_ranks`."""
    main([*meeting, *settings])


def _values(processes: Sequence[Any], channels: Sequence[Any]) -> list[Any]:
    """What each rank sends, None if nothing, once all have ended; or `GRACE` after one has failed, or after `LIMIT`."""
    values: list[Any] = [None] * len(processes)
    deadline = time.monotonic() + LIMIT
    while (open_ := [channel for channel in channels if not channel.closed]) and time.monotonic() < deadline:
        for channel in connection.wait(open_, timeout=1.0):
            try:
                values[channels.index(channel)] = channel.recv()
            except EOFError:  # the rank has ended, and said all
                channel.close()
        if any(process.exitcode not in (None, 0) for process in processes):
            deadline = min(deadline, time.monotonic() + GRACE)
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    return values


def _rank(rank: int, size: int, stderr: Path, channel: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if size > 1:  # one rank alone runs as `python -m pfedmma.train` does, without a launcher's variables
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    shapes.PER_CLASS.update(RANKS_DRAW)
    handle = os.open(stderr, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    run_main(lambda: channel.send(work(*args)))
