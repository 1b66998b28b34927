"""A rank that hangs: the others end within ``distributed.timeout`` and say which rank did not come."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pfedmma.comm.missing_ranks import RollCall
from pfedmma.engine import rounds
from tests.support import small
from tests.support.ranks import run_ranks, train

TIMEOUT = 4.0


def train_and_hang_in_round_2(meeting: list[str], settings: list[str], victim: int) -> None:
    """Rank ``victim`` falls asleep in its local training; the others note when they are done with theirs."""
    real, calls = rounds.train_cohort, 0

    def train_cohort(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and int(os.environ["RANK"]) == victim:
            time.sleep(2 * TIMEOUT)
            os._exit(77)
        result = real(*args)
        if calls == 2:
            print(f"waits from {time.time()}", file=sys.stderr)
        return result

    rounds.train_cohort = train_cohort
    train([*meeting, f"distributed.timeout={TIMEOUT}"], settings)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_who_hangs_is_named(tmp_path: Path, victim: int) -> None:
    ended = run_ranks(tmp_path / "meet", 3, train_and_hang_in_round_2, small.settings(tmp_path / "run"), victim)
    assert ended[victim].status == 77
    for rank in {0, 1, 2} - {victim}:
        assert ended[rank].status == 2, ended[rank].stderr
        (line,) = [line for line in ended[rank].stderr.splitlines() if line.startswith("error:")]
        assert f"rank {rank} waited in 'metrics' for rank {victim} (" in line and "resume=auto" in line
        assert "Traceback" not in ended[rank].stderr
        begin = float(ended[rank].stderr.split("waits from ")[1].split()[0])
        said = (tmp_path / "meet" / f"stderr-{rank}").stat().st_mtime
        assert 0.7 * TIMEOUT < said - begin < TIMEOUT + 0.5, "it waits as long as it may, and no longer"


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
