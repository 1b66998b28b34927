"""What a person sees of a comparison at the terminal: a line for each run that is going on, and one about all of them."""

from __future__ import annotations

import heapq
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pfedmma.compare.grid import Plan
from pfedmma.records.folder import RunFolder
from pfedmma.run.progress import Pace
from pfedmma.system.console import duration

EVERY = 1.0  # seconds between two looks


def until_all_done(active: Sequence[float], waiting: Sequence[float], jobs: int) -> float:
    """Seconds until all runs are done: ``active`` ones need so many, ``waiting`` ones, in order, so many where a slot is free first."""
    ends = [*active, *[0.0] * (jobs - len(active))]
    heapq.heapify(ends)
    for seconds in waiting:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


class Durations:
    """Seconds that runs took, from which those of others are expected: methods differ in them by ten times, and so do settings."""

    def __init__(self) -> None:
        self._took: dict[tuple[str, ...], list[float]] = {}

    def add(self, plan: Plan, seconds: float) -> None:
        """Of a run that has ended well."""
        for key in _alike(plan):
            self._took.setdefault(key, []).append(seconds)

    def usual(self, plan: Plan) -> float | None:
        """Of runs of the method in the same setting, else of the method, else of all; None where there are none."""
        took = next((self._took[key] for key in _alike(plan) if key in self._took), None)
        return None if took is None else statistics.fmean(took)


def _alike(plan: Plan) -> list[tuple[str, ...]]:
    """What runs may have in common, the most first."""
    return [(plan.method, plan.setting), (plan.method,), ()]


class Going(Protocol):
    """A run that is going on."""

    plan: Plan
    begun: float  # on the monotonic clock

    @property
    def log(self) -> Path: ...


@dataclass
class Watched:
    """The rounds of a run that is going on, as its folder has them."""

    going: Going
    pace: Pace
    offset: int = 0
    at: float = 0.0  # when the last round was seen

    @classmethod
    def from_run(cls, going: Going) -> Watched:
        config = going.plan.config
        return cls(going, Pace(config.federation.rounds, config.evaluation.every))

    def look(self) -> None:
        """Read what is new."""
        rows, self.offset = RunFolder(self.going.plan.config.run_dir).new_rounds(self.offset)
        if rows:
            self.pace.add(rows)
            self.at = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.going.begun

    def left(self, usual: float | None) -> float | None:
        """Seconds that it needs, by its own rounds; before there are some, as a ``usual`` run; None if that is not known either."""
        if self.pace.left is not None:
            return max(0.0, self.pace.left.seconds - (time.monotonic() - self.at))
        return None if usual is None else max(0.0, usual - self.spent)


@dataclass
class Board:
    """Runs of a comparison on ``jobs`` slots. A context manager: at a terminal, its lines are there inside and gone afterwards."""

    total: int
    jobs: int
    done: int = 0
    waiting: Sequence[Plan] = ()  # what is not started yet, as it is at any time
    took: Durations = field(default_factory=Durations)
    failed: int = 0
    watched: dict[int, Watched] = field(default_factory=dict)  # by slot
    _live: Live | None = None
    _next: float = 0.0

    def __enter__(self) -> Board:
        if sys.stdout.isatty():
            self._live = Live(Text(""), console=Console(), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()

    def look(self) -> None:
        """Bring the lines up to date, now and then."""
        if self._live is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            self._live.update(Text("\n".join(self.lines()), overflow="fold"), refresh=True)

    def started(self, slot: int, run: Going) -> None:
        """A run is going on in a slot."""
        self.watched[slot] = Watched.from_run(run)

    def ended(self, slot: int, well: bool) -> None:
        """The run in this slot is over."""
        watched = self.watched.pop(slot)
        self.done += 1
        if well:
            self.took.add(watched.going.plan, watched.spent)

    def lines(self) -> list[str]:
        """One about all runs, and one for each that is going on: its round, its estimate, its log."""
        left = self.left()
        folder = os.path.commonpath([watched.going.log.parent for watched in self.watched.values()]) if self.watched else ""
        failed = f", {self.failed} failed" if self.failed else ""
        head = f"{self.done}/{self.total} runs done{failed}, {duration_or_dashes(left)} left; logs in {folder or 'no folder yet'}"
        return [head, *(self._line(watched, folder) for watched in self.watched.values())]

    def _line(self, watched: Watched, folder: str) -> str:
        left, pace = watched.left(self._usual(watched.going.plan)), watched.pace
        mark = pace.left.mark if pace.left else ""
        log = watched.going.log.relative_to(folder)
        return f"  round {pace.done}/{pace.rounds}  {duration_or_dashes(left)}{mark} left  {log}"

    def left(self) -> float | None:
        """Seconds until all runs are done; None while nothing is known of how long one takes."""
        for watched in self.watched.values():
            watched.look()
        active = [watched.left(self._usual(watched.going.plan)) for watched in self.watched.values()]
        waiting = [self._usual(plan) for plan in self.waiting]
        known, expected = ([seconds for seconds in part if seconds is not None] for part in (active, waiting))
        if len(known) < len(active) or len(expected) < len(waiting):
            return None
        return until_all_done(known, expected, self.jobs)

    def _usual(self, plan: Plan) -> float | None:
        """Seconds of a run, by those that are done; before there is one, as those that are going on let expect."""
        if (usual := self.took.usual(plan)) is not None:
            return usual
        expected = [watched.spent + left for watched in self.watched.values() if (left := watched.left(None)) is not None]
        return statistics.fmean(expected) if expected else None


def duration_or_dashes(seconds: float | None) -> str:
    """As `duration`, dashes where it is not known."""
    return "-:--:--" if seconds is None else duration(seconds)
