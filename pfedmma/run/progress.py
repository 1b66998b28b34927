"""How long the rounds that are left of a run will take, with their evaluations, from those that it has done."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pfedmma.engine.rounds import due
from pfedmma.records.rows import RoundRow
from pfedmma.system.console import duration

RECENT = 20  # rounds whose mean is the time of the next ones


@dataclass(frozen=True)
class Left:
    """Seconds that are left. ``more``: evaluations are to come that are not in it, as none has been done yet."""

    seconds: float
    more: bool = False

    @property
    def mark(self) -> str:
        """Behind the time."""
        return "+" if self.more else ""

    def __str__(self) -> str:
        return f"{duration(self.seconds)}{self.mark}"


@dataclass
class Pace:
    """How fast a run of ``rounds`` rounds goes that is evaluated ``every`` so many of them (0: never).

    The first round that it sees counts only until there is another: much is made ready in it.
    """

    rounds: int
    every: int
    done: int = 0
    _trained: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _tested: float | None = None
    _seen: int = 0

    def add(self, rows: Iterable[RoundRow]) -> None:
        """Rounds that are done."""
        for row in rows:
            self._seen += 1
            if self._seen == 2:
                self._trained.clear()
            self.done, tested = row.round, row.spent("evaluate")
            self._trained.append(row.trained)
            if row.accuracy is not None:
                self._tested = tested

    @property
    def left(self) -> Left | None:
        """What is left; None before a round is done."""
        if not self._trained:
            return None
        tests = sum(due(self.every, round_, self.rounds) for round_ in range(self.done + 1, self.rounds + 1))
        seconds = (self.rounds - self.done) * statistics.fmean(self._trained) + tests * (self._tested or 0.0)
        return Left(seconds, tests > 0 and self._tested is None)
