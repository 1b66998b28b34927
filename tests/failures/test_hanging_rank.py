"""A rank that hangs: the others end within ``distributed.timeout`` and say which rank did not come."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pfedmma import train as train_module
from pfedmma.comm.missing_ranks import RollCall
from pfedmma.comm.world import World
from pfedmma.engine import rounds
from tests.support import small
from tests.support.ranks import run_ranks, train

TIMEOUT = 6.0


def train_and_hang_in_round_2(meeting: list[str], settings: list[str], victim: int, folder: Path) -> None:
    """Rank ``victim`` hangs in its local training until the others have ended by themselves.

    These meet once more after theirs, and have `TIMEOUT` only from then on, so that none is late because the machine is crowded.
    """
    rank, others = int(os.environ["RANK"]), {0, 1, 2} - {victim}
    real_train, real_open, calls = rounds.train_cohort, train_module.open_world, 0
    worlds: list[World] = []

    def open_world(*args: Any) -> World:
        worlds.append(real_open(*args))
        return worlds[0]

    def train_cohort(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and rank == victim:
            until(lambda: all("error:" in (folder / f"stderr-{other}").read_text() for other in others))
            os._exit(77)
        result = real_train(*args)
        if calls == 2:
            (folder / f"trained-{rank}").touch()
            until(lambda: all((folder / f"trained-{other}").exists() for other in others))
            worlds[0].timeout = TIMEOUT
            print(f"waits from {time.time()}", file=sys.stderr)
        return result

    rounds.train_cohort, train_module.open_world = train_cohort, open_world
    train(meeting, settings)


def until(done: Callable[[], bool]) -> None:
    while not done():
        time.sleep(0.02)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_who_hangs_is_named(tmp_path: Path, victim: int) -> None:
    folder = tmp_path / "meet"
    ended = run_ranks(folder, 3, train_and_hang_in_round_2, small.settings(tmp_path / "run"), victim, folder)
    assert ended[victim].status == 77, "the others have ended while it was there"
    for rank in {0, 1, 2} - {victim}:
        assert ended[rank].status == 2, ended[rank].stderr
        (line,) = [line for line in ended[rank].stderr.splitlines() if line.startswith("error:")]
        assert f"rank {rank} waited in 'metrics' for rank {victim} (" in line and "resume=auto" in line
        assert "Traceback" not in ended[rank].stderr
        begin = float(ended[rank].stderr.split("waits from ")[1].split()[0])
        said = (folder / f"stderr-{rank}").stat().st_mtime
        assert 0.7 * TIMEOUT < said - begin < TIMEOUT + 120, "it waits as long as it may, and no longer, but on a crowded machine"


class Store(dict):
    """A meeting place within one process."""

    def set(self, key: str, value: str) -> None:
        self[key] = value

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


def test_roll_call() -> None:
    """Who has come to an earlier collective alone, or to none, is missing."""
    store = Store()
    ranks = [RollCall(store, rank, 4) for rank in range(4)]
    ranks[1].here(7)
    ranks[2].here(6)
    assert ranks[0].missing(7, 0.1) == [2, 3]
    ranks[2].here(7)
    ranks[3].here(8)
    assert ranks[0].missing(7, 0.1) == []
