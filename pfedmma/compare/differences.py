"""Whether the differences of a table mean anything: methods against each other, paired over seeds.

A seed draws the data and the start of all methods alike, so their difference on it is a pair. Settings of one seed (data sets that are
averaged over) share that draw and are no pairs of their own: a method's score on a seed is its mean over them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pfedmma.compare.done import Done, by_seed, methods_of
from pfedmma.records.rows import TITLES


@dataclass(frozen=True)
class Difference:
    """A method's score ``column`` against that of another one, paired over seeds, in points of percent."""

    method: str
    other: str
    column: str
    mean: float
    pairs: int
    low: float | None = None  # 95 % interval
    high: float | None = None
    p: float | None = None  # two-sided paired t-test

    def __str__(self) -> str:
        start = f"{self.method} - {self.other}: {self.mean:+.2f} points of {TITLES[self.column]}"
        if self.p is None:
            return f"{start} ({self.pairs} pair{'s' if self.pairs > 1 else ''}: no test)"
        return f"{start}, 95 % interval {self.low:+.2f} to {self.high:+.2f}, paired t-test over {self.pairs} pairs: p = {self.p:.2g}"


def differences(runs: Sequence[Done]) -> list[Difference]:
    """In HM, each method against the baseline of the comparison, or without one against the best other method; each pair once."""
    if runs and runs[0].plan.baseline:
        return against(runs, "hm")
    scores = seed_scores(runs, "hm")
    found: dict[frozenset[str], Difference] = {}
    for method, own in scores.items():
        rivals = [other for other, theirs in scores.items() if other != method and own.keys() & theirs.keys()]
        if rivals:
            best = max(rivals, key=lambda other: statistics.fmean(scores[other].values()))
            found.setdefault(frozenset((method, best)), _difference(method, best, "hm", scores))
    return list(found.values())


def against(runs: Sequence[Done], column: str) -> list[Difference]:
    """Each method against the baseline of the comparison in the score ``column``; those that have a seed in common with it."""
    scores, baseline = seed_scores(runs, column), runs[0].plan.baseline
    theirs = scores.get(baseline, {})
    return [_difference(m, baseline, column, scores) for m in scores if m != baseline and scores[m].keys() & theirs.keys()]


def seed_scores(runs: Sequence[Done], column: str) -> dict[str, dict[int, float]]:
    """{method: {seed: its score, mean over settings}} of the seeds that have it in every setting."""
    found: dict[str, dict[int, float]] = {}
    for method in methods_of(runs):
        for seed, group in by_seed(runs, method).items():
            values = [value for run in group if (value := run.score(column)) is not None]
            if len(values) == len(group):
                found.setdefault(method, {})[seed] = statistics.fmean(values)
    return found


def _difference(method: str, other: str, column: str, scores: Mapping[str, Mapping[int, float]]) -> Difference:
    own, theirs = scores[method], scores[other]
    common = sorted(own.keys() & theirs.keys())
    gaps = [own[seed] - theirs[seed] for seed in common]
    mean = statistics.fmean(gaps)
    if len(gaps) < 2 or statistics.pstdev(gaps) == 0:  # no spread to test against
        return Difference(method, other, column, mean, len(gaps))
    from scipy import stats  # takes a second to import

    test = stats.ttest_1samp(gaps, 0.0)
    interval = test.confidence_interval(0.95)
    return Difference(method, other, column, mean, len(gaps), float(interval.low), float(interval.high), float(test.pvalue))
