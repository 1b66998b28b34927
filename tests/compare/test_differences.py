"""Paired tests of the differences between methods."""

from __future__ import annotations

import math
import statistics

import pytest
from scipy import stats

from pfedmma.compare.differences import against, differences
from tests.support.compared import ONE, done, hm


def test_differences_are_those_of_a_paired_t_test():
    ours, theirs = ([hm(*[run.score(c) for c in ("local", "base", "novel")]) for run in part] for part in (ONE[:3], ONE[3:]))
    wanted = stats.ttest_rel(ours, theirs)
    interval = wanted.confidence_interval(0.95)
    (first,) = differences(ONE)  # each pair once
    assert (first.method, first.other, first.pairs) == ("ours", "theirs", 3)
    assert first.mean == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs))
    assert (first.low, first.high, first.p) == pytest.approx((interval.low, interval.high, wanted.pvalue))
    # By hand: t with 2 degrees of freedom leaves 2.5 % above 4.302653.
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    half = 4.302653 * statistics.stdev(gaps) / math.sqrt(3)
    assert (first.low, first.high) == pytest.approx((first.mean - half, first.mean + half), rel=1e-5)
    assert str(first) == (
        f"ours - theirs: {first.mean:+.2f} points of HM, 95 % interval {first.low:+.2f} to {first.high:+.2f}, "
        f"paired t-test over 3 pairs: p = {first.p:.2g}"
    )


def test_pairs_are_seeds_that_both_have_in_every_setting():
    runs = [
        done("theirs", seed, (score,) * 3, dataset)
        for seed, dataset, score in [
            (1, "shapes", 20.0),
            (1, "cifar10", 30.0),
            (0, "shapes", 40.0),
            (0, "cifar10", 60.0),
            (4, "shapes", 10.0),
        ]
    ]
    runs += [
        done("ours", seed, (score,) * 3, dataset)
        for seed, dataset, score in [
            (0, "shapes", 41.0),
            (0, "cifar10", 61.0),
            (1, "cifar10", 37.0),
            (1, "shapes", 23.0),
            (9, "shapes", 99.0),
        ]
    ]
    (found,) = differences([*runs, done("ours", 5, None)])
    # Two data sets of one seed share what the seed draws: a seed is one pair, of the means over its data sets.
    assert (found.method, found.other, found.pairs) == ("theirs", "ours", 2)
    assert found.mean == pytest.approx(-(1 + 5) / 2)
    assert found.p == pytest.approx(stats.ttest_rel([50, 25], [51, 30]).pvalue)


def test_against_a_baseline_every_method_has_its_difference():
    """And each score its own: by hand, with two seeds."""
    scores = {
        "local": [(80.0, 50.0, 40.0), (82.0, 52.0, 44.0)],
        "ours": [(81.0, 53.0, 40.0), (84.0, 54.0, 43.0)],
        "far": [(10.0, 90.0, 90.0)],
    }
    runs = [done(name, seed, one, baseline="local") for name, all_ in scores.items() for seed, one in enumerate(all_)]
    assert [(d.method, d.other, d.column, d.pairs) for d in differences(runs)] == [("ours", "local", "hm", 2), ("far", "local", "hm", 1)]
    local, far = against(runs, "local")
    assert (local.mean, far.mean) == pytest.approx((1.5, -70.0))
    half = 12.7062 * math.sqrt(0.5) / math.sqrt(2)  # t with one degree of freedom leaves 2.5 % above 12.7062
    assert (local.low, local.high) == pytest.approx((1.5 - half, 1.5 + half), rel=1e-4)
    assert [d.mean for d in against(runs, "novel")] == pytest.approx([-0.5, 50.0])
    assert str(local).startswith("ours - local: +1.50 points of Local, 95 % interval ")


def test_the_other_one_is_the_best_by_mean_hm():
    runs = []
    for method, values in (("a", (50.0, 60.0)), ("b", (80.0, 10.0)), ("c", (55.0, 57.0)), ("far", (90.0,))):
        runs += [done(method, seed + 9 * (method == "far"), (value,) * 3) for seed, value in enumerate(values)]
    found = {d.method: d.other for d in differences(runs)}
    assert found == {"a": "c", "b": "c"}  # far has no seed in common with any; c against a is a against c


@pytest.mark.parametrize("gap", [0.0, 2.0])
def test_without_spread_there_is_no_test(gap: float):
    runs = [done("ours", 0, (50.0 + gap,) * 3), done("theirs", 0, (50.0,) * 3)]
    (first,) = differences(runs)
    assert (first.pairs, first.low, first.high, first.p) == (1, None, None, None)
    assert str(first) == f"ours - theirs: +{gap:.2f} points of HM (1 pair: no test)"
    (first,) = differences([*runs, done("ours", 1, (64.0 + gap,) * 3), done("theirs", 1, (64.0,) * 3)])
    assert str(first) == f"ours - theirs: +{gap:.2f} points of HM (2 pairs: no test)"


def test_a_method_alone_has_no_difference():
    assert differences(ONE[:3]) == []
