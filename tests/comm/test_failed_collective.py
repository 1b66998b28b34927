"""A collective that NCCL reports as failed: `is_completed` is true of it, and its tensor is not the sum. Without a GPU."""

from __future__ import annotations

import datetime
import time
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pfedmma.comm.missing_ranks import RollCall
from pfedmma.comm.world import World
from pfedmma.system.errors import RankFailure


class State(Enum):
    SUCCESS = 0
    COMM_ERROR = 2


class Work:
    """A collective of NCCL that has come to its end."""

    error = "ncclRemoteError: a remote process is gone"

    def __init__(self, *, raises: bool = False) -> None:
        self.raises = raises

    def is_completed(self) -> bool:
        return True

    def wait(self, timeout: datetime.timedelta) -> bool:
        if self.raises:
            raise RuntimeError(self.error)
        return True


class WithResult(Work):
    """As newer versions of torch tell it."""

    def __init__(self, value: int | None, **options: bool) -> None:
        super().__init__(**options)
        self.value = value

    def get_future_result(self) -> SimpleNamespace:
        return SimpleNamespace(done=lambda: self.value is not None, value=lambda: self.value)


class WithException(Work):
    """As older versions tell it."""

    def __init__(self, found: Exception | None) -> None:
        super().__init__()
        self.found = found

    def exception(self) -> Exception | None:
        return self.found


def two_ranks(monkeypatch: pytest.MonkeyPatch, work: Work, state: State | None, other_came: bool = False) -> World:
    """Rank 0 of two under NCCL; its next collective is ``work``, and ``state`` what the communicator says of itself."""
    backend = SimpleNamespace() if state is None else SimpleNamespace(get_error=lambda: state)
    group = SimpleNamespace(_get_backend=lambda device: backend)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, async_op: work)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_group", lambda: group)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    world = World(0, 2, torch.device("cpu"), "nccl", 1.0)
    store = dist.HashStore()
    if other_came:
        RollCall(store, 1, 2).here(1)
    world.__dict__["_roll"] = RollCall(store, 0, 2)
    return world


FAILED = [
    (Work(raises=True), State.SUCCESS),
    (WithResult(2), State.SUCCESS),
    (WithResult(None, raises=True), State.SUCCESS),
    (WithResult(0), State.COMM_ERROR),  # asked of a communicator that has failed before
    (WithResult(None), State.COMM_ERROR),
    (WithException(RuntimeError(Work.error)), None),
]
WELL: list[tuple[Work, Any]] = [(WithResult(0), State.SUCCESS), (WithResult(None), State.SUCCESS), (WithException(None), None)]


@pytest.mark.parametrize(("work", "state"), FAILED)
def test_a_failed_collective_names_who_is_missing(work: Work, state: State | None, monkeypatch: pytest.MonkeyPatch) -> None:
    world = two_ranks(monkeypatch, work, state)
    with pytest.raises(RankFailure, match=r"^rank 0 waited in 'exchange' for rank 1 \(.*resume=auto"):
        world.sum(torch.ones(3), "exchange")
    assert world.ledger.total == {}, "it does not count as one that was done"


def test_when_all_are_there_the_connection_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    world = two_ranks(monkeypatch, WithResult(2), State.COMM_ERROR, other_came=True)
    with pytest.raises(RankFailure, match="for a connection that broke"):
        world.sum(torch.ones(3), "exchange")


@pytest.mark.parametrize(("work", "state"), WELL)
def test_one_that_ended_well(work: Work, state: State | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert two_ranks(monkeypatch, work, state).sum(torch.ones(3), "exchange").tolist() == [1, 1, 1]


class Endless(Work):
    """One for which another rank does not come; NCCL waits on the GPU."""

    def is_completed(self) -> bool:
        return False


def test_one_that_does_not_end_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of `distributed.timeout`, here one second, is left to find out who is missing; other threads get time meanwhile."""
    naps: list[float] = []
    nap = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (naps.append(seconds), nap(seconds)))
    world = two_ranks(monkeypatch, Endless(), State.SUCCESS)
    with pytest.raises(RankFailure, match=r"^rank 0 waited in 'exchange' for rank 1 \(nothing within 1 s\)"):
        world.sum(torch.ones(3), "exchange")
    assert naps and 0 < min(naps) < 1e-3 and world.ledger.total == {}


def test_a_first_collective_that_does_not_even_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL's looks for the other ranks in the store, and blocks there."""
    world = two_ranks(monkeypatch, WithResult(0), State.SUCCESS)
    never = dist.HashStore()
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, async_op: never.wait(["nobody sets it"], datetime.timedelta(seconds=30)))
    with pytest.raises(RankFailure, match=r"for rank 1 \(no answer within 0\.8 s\)"):
        world.sum(torch.ones(3), "exchange")
