"""Ranks that a launcher starts again meet each other, not what those before have left in its store."""

from __future__ import annotations

import contextlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pfedmma.comm.rendezvous import fresh_name
from pfedmma.comm.world import DistributedConfig, open_world
from tests.support.ranks import run_ranks


class Store:
    """A store within one process."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.kept[key] = value

    def get(self, key: str) -> bytes:
        return self.kept[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.kept for key in keys)


def meet(store: Store, size: int, late: int) -> set[str]:
    """All ranks at once, but for one that comes late."""

    def come(rank: int) -> str:
        time.sleep(0.2 * (rank == late))
        return fresh_name(store, rank, size, 600.0)

    with ThreadPoolExecutor(size) as threads:
        return set(threads.map(come, range(size)))


@pytest.mark.parametrize("late", [0, 1, 3])
def test_all_have_the_same_name_and_each_meeting_another(late: int) -> None:
    store, names = Store(), set()
    for _ in range(3):
        found = meet(store, 4, late)
        assert len(found) == 1
        names |= found
    assert len(names) == 3


@pytest.mark.parametrize("came", [[0], [1], [0, 1], [0, 2], [1, 2]])
def test_after_a_meeting_that_came_to_nothing(came: list[int]) -> None:
    """Some of three ranks were killed before they came, the others while they waited."""
    store = Store()
    meet(store, 3, 0)
    before = dict(store.kept)

    def wait(rank: int) -> None:
        with contextlib.suppress(RuntimeError):  # not for who has heard the name, and would wait under it
            fresh_name(store, rank, 3, 0.2)

    with ThreadPoolExecutor(len(came)) as threads:
        list(threads.map(wait, came))
    assert store.kept != before
    assert len(meet(store, 3, 1)) == 1


@pytest.mark.parametrize(("size", "alone", "who"), [(3, 0, "ranks 1, 2"), (2, 1, "rank 0"), (2, 0, "rank 1")])
def test_who_does_not_come_is_named(size: int, alone: int, who: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(f"{who} did not come")):
        fresh_name(Store(), alone, size, 0.1)


def meet_through_the_launcher(meeting: list[str], port: int, generation: int) -> float:
    """As torchrun starts a rank, with its store at ``port``. The first generation is killed, in the second one rank comes late."""
    launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ.update(launcher)
    if generation == 2 and os.environ["RANK"] == "1":
        time.sleep(1.0)
    world = open_world(DistributedConfig(device="cpu", timeout=600.0))
    total = float(world.sum(torch.ones(1), "metrics"))
    if generation == 1:
        os._exit(9)
    world.close()
    return total


def test_a_launcher_that_keeps_its_store(tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    first = run_ranks(tmp_path / "first", 2, meet_through_the_launcher, store.port, 1)
    assert [rank.status for rank in first] == [9, 9]
    second = run_ranks(tmp_path / "second", 2, meet_through_the_launcher, store.port, 2)
    assert [(rank.status, rank.value) for rank in second] == [(0, 2.0)] * 2, second[0].stderr
