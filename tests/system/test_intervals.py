"""Means and their intervals."""

from __future__ import annotations

import pytest

from pfedmma.system.intervals import Interval, interval


def test_an_interval_is_that_of_students_t() -> None:
    """Of 40 and 50: the standard error is 5, and t with one degree of freedom leaves 2.5 % above 12.7062."""
    found = interval([40.0, 50.0])
    assert found is not None and (found.mean, found.count) == (45.0, 2)
    assert found.low == pytest.approx(45 - 5 * 12.7062, rel=1e-4) and found.half == pytest.approx(5 * 12.7062, rel=1e-4)
    three = interval([1.0, 2.0, 3.0])  # 4.3027 of two degrees, standard error 1 / sqrt(3)
    assert three is not None and three.half == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


def test_one_value_has_none_and_none_no_mean() -> None:
    assert interval([3.5]) == Interval(3.5, None, None, 1) and Interval(3.5, None, None, 1).half == 0.0
    assert interval([]) is None
    assert interval([2.0, 2.0]) == Interval(2.0, 2.0, 2.0, 2)
