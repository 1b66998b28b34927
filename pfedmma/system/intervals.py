"""Means with an interval that says how sure they are: over seeds, which are few."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The ``mean`` of ``count`` values, and the 95 % interval of Student's t around it; of one value there is none."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half(self) -> float:
        """How far it reaches to either side; 0 where there is none."""
        return 0.0 if self.high is None else self.high - self.mean


def interval(values: Sequence[float]) -> Interval | None:
    """The mean of ``values``, which are drawn independently, with its interval; None of none."""
    if not values:
        return None
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Interval(mean, None, None, 1)
    from scipy import stats  # takes a second to import

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * statistics.stdev(values) / count**0.5
    return Interval(mean, mean - half, mean + half, count)
