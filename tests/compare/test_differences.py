"""Paired tests of the differences between methods."""

from __future__ import annotations

import math
import statistics

import pytest
from scipy import stats

from pfedmma.compare.differences import differences
from tests.support.compared import ONE, done, hm


def test_differences_are_those_of_a_paired_t_test():
    ours, theirs = ([hm(*[run.score(c) for c in ("local", "base", "novel")]) for run in part] for part in (ONE[:3], ONE[3:]))
    wanted = stats.ttest_rel(ours, theirs)
    interval = wanted.confidence_interval(0.95)
    first, second = differences(ONE)
    assert (first.method, first.other, first.pairs) == ("ours", "theirs", 3)
    assert first.mean == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs))
    assert (first.low, first.high, first.p) == pytest.approx((interval.low, interval.high, wanted.pvalue))
    assert (second.mean, second.low, second.high, second.p) == pytest.approx((-first.mean, -first.high, -first.low, first.p))
    # By hand: t with 2 degrees of freedom leaves 2.5 % above 4.302653.
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    half = 4.302653 * statistics.stdev(gaps) / math.sqrt(3)
    assert (first.low, first.high) == pytest.approx((first.mean - half, first.mean + half), rel=1e-5)
    assert str(first) == (
        f"ours - theirs: {first.mean:+.2f} points of HM, 95 % interval {first.low:+.2f} to {first.high:+.2f}, "
        f"paired t-test over 3 pairs: p = {first.p:.2g}"
    )


def test_pairs_are_where_both_have_the_setting_and_the_seed():
    runs = [
        done("theirs", 4, (10.0, 10.0, 10.0)),
        done("theirs", 1, (20.0, 20.0, 20.0)),
        done("theirs", 0, (40.0, 40.0, 40.0)),
        done("theirs", 0, (60.0, 60.0, 60.0), "cifar10"),
        done("ours", 0, (41.0, 41.0, 41.0)),
        done("ours", 1, (23.0, 23.0, 23.0)),
        done("ours", 0, (61.0, 61.0, 61.0), "cifar10"),
        done("ours", 9, (99.0, 99.0, 99.0)),
        done("ours", 5, None),
    ]
    found = {d.method: d for d in differences(runs)}
    assert found["ours"].pairs == found["theirs"].pairs == 3
    assert found["ours"].mean == pytest.approx((1 + 3 + 1) / 3)
    assert found["ours"].p == pytest.approx(stats.ttest_rel([41, 23, 61], [40, 20, 60]).pvalue)


def test_the_other_one_is_the_best_by_mean_hm():
    runs = []
    for method, values in (("a", (50.0, 60.0)), ("b", (80.0, 10.0)), ("c", (55.0, 57.0)), ("far", (90.0,))):
        runs += [done(method, seed + 9 * (method == "far"), (value,) * 3) for seed, value in enumerate(values)]
    found = {d.method: d.other for d in differences(runs)}
    assert found == {"a": "c", "b": "c", "c": "a"}  # far has no seed in common with any


@pytest.mark.parametrize("gap", [0.0, 2.0])
def test_without_spread_there_is_no_test(gap: float):
    runs = [done("ours", 0, (50.0 + gap,) * 3), done("theirs", 0, (50.0,) * 3)]
    first, _ = differences(runs)
    assert (first.pairs, first.low, first.high, first.p) == (1, None, None, None)
    assert str(first) == f"ours - theirs: +{gap:.2f} points of HM (1 pair: no test)"
    first, _ = differences([*runs, done("ours", 1, (64.0 + gap,) * 3), done("theirs", 1, (64.0,) * 3)])
    assert str(first) == f"ours - theirs: +{gap:.2f} points of HM (2 pairs: no test)"


def test_a_method_alone_has_no_difference():
    assert differences(ONE[:3]) == []
