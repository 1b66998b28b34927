"""Axes: round ticks that hold all values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfedmma.report import axes

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_a_linear_axis_holds_its_values_between_round_ticks(values: list[float]):
    axis = axes.linear(values, 10.0, 110.0)
    assert all(10.0 - 1e-6 <= axis.at(value) <= 110.0 + 1e-6 for value in values)
    assert 2 <= len(axis.ticks) <= 8 and axis.ticks[0] == pytest.approx(axis.low) and axis.ticks[-1] == pytest.approx(axis.high)


def test_ticks_are_ones_twos_and_fives():
    assert axes.linear([0.0, 97.0], 0, 1).ticks == [0, 20, 40, 60, 80, 100]
    assert axes.linear([61.3, 64.9], 0, 1).ticks == [61, 62, 63, 64, 65]
    assert axes.linear([0.013, 0.048], 0, 1).ticks == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])


def test_rounds_have_whole_ticks_and_no_empty_space():
    axis = axes.linear([1.0, 3.0], 0, 100, whole=True)
    assert list(axis.ticks) == [1, 2, 3] and axis.at(1) == 0 and axis.at(3) == 100
    assert list(axes.linear([1.0, 50.0], 0, 100, whole=True).ticks) == [10, 20, 30, 40, 50]
    assert list(axes.linear([1.0], 0, 100, whole=True).ticks) == [1]


def test_a_logarithmic_axis_ends_at_powers_of_ten():
    axis = axes.decades([1_024.0, 2_698_240.0], 100, 0)
    assert axis.ticks == [1e3, 1e4, 1e5, 1e6, 1e7] and axis.at(1e5) == pytest.approx(50) and axis.at(1e3) == 100
    assert len(axes.decades([5.0], 100, 0).ticks) == 2 and len(axes.decades([1.0, 1e20], 100, 0).ticks) <= 8
    assert axes.decades([], 100, 0).at(1.0) == 100


@pytest.mark.parametrize("values", [[4.2288, 4.2294], [51.97, 52.05], [-3.0001, -3.0], [1e-4, 1.0004e-4]])
def test_ticks_of_values_that_hardly_differ_are_told_apart(values: list[float]) -> None:
    axis = axes.linear(values, 0.0, 100.0)
    assert axis.low <= min(values) and max(values) <= axis.high
    assert len({f"{tick:.4g}" for tick in axis.ticks}) == len(axis.ticks)
