"""Whether the differences of a table mean anything: each method against the best other one, paired over seeds and settings."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pfedmma.compare.done import Done


@dataclass(frozen=True)
class Difference:
    """A method's HM against that of the best other one, paired over seeds and settings, in points of percent."""

    method: str
    other: str
    mean: float
    pairs: int
    low: float | None = None  # 95 % interval
    high: float | None = None
    p: float | None = None  # two-sided paired t-test

    def __str__(self) -> str:
        start = f"{self.method} - {self.other}: {self.mean:+.2f} points of HM"
        if self.p is None:
            return f"{start} ({self.pairs} pair{'s' if self.pairs > 1 else ''}: no test)"
        return f"{start}, 95 % interval {self.low:+.2f} to {self.high:+.2f}, paired t-test over {self.pairs} pairs: p = {self.p:.2g}"


def differences(runs: Sequence[Done]) -> list[Difference]:
    """Each method against the best other one; methods without HM are left out."""
    scores: dict[str, dict[tuple[str, int], float]] = {}
    for run in runs:
        if (hm := run.score("hm")) is not None:
            scores.setdefault(run.plan.method, {})[run.plan.setting, run.plan.config.seed] = hm
    found = []
    for method, own in scores.items():
        common = {other: sorted(own.keys() & theirs.keys()) for other, theirs in scores.items() if other != method}
        rivals = [other for other, keys in common.items() if keys]
        if rivals:
            best = max(rivals, key=lambda other: statistics.fmean(scores[other].values()))
            keys = common[best]
            found.append(_difference(method, best, [own[k] for k in keys], [scores[best][k] for k in keys]))
    return found


def _difference(method: str, other: str, own: Sequence[float], theirs: Sequence[float]) -> Difference:
    gaps = [a - b for a, b in zip(own, theirs, strict=True)]
    mean = statistics.fmean(gaps)
    if len(gaps) < 2 or statistics.pstdev(gaps) == 0:  # no spread to test against
        return Difference(method, other, mean, len(gaps))
    from scipy import stats  # takes a second to import

    test = stats.ttest_rel(own, theirs)
    interval = test.confidence_interval(0.95)
    return Difference(method, other, mean, len(gaps), float(interval.low), float(interval.high), float(test.pvalue))
