"""A collective of gloo that takes longer than one wait: the end of a wait is not a failure, whenever the others come."""

from __future__ import annotations

import datetime

import pytest

from pfedmma.comm.world import _finished


class Work:
    """A collective whose waits end as ``waits`` say, each with what it raises or None; it is completed after ``completed`` of them."""

    def __init__(self, waits: list[str | None], completed: int) -> None:
        self.waits, self.completed, self.calls = waits, completed, 0

    def is_completed(self) -> bool:
        return self.calls >= self.completed

    def wait(self, timeout: datetime.timedelta) -> bool:
        said = self.waits[self.calls]
        self.calls += 1
        if said is not None:
            raise RuntimeError(said)
        return True


TOO_LONG = "Operation timed out!"


def test_it_is_waited_for_again() -> None:
    work = Work([TOO_LONG, None], completed=2)
    assert not _finished(work, "gloo")
    assert _finished(work, "gloo") and work.calls == 2


def test_it_ends_well_just_after_a_wait() -> None:
    assert _finished(Work([TOO_LONG, None], completed=1), "gloo")


def test_one_that_failed_says_so() -> None:
    with pytest.raises(RuntimeError, match="closed by peer"):
        _finished(Work(["Connection closed by peer"] * 2, completed=1), "gloo")
