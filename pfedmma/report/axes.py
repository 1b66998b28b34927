"""Round numbers for axes, and where on a drawing a value lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST = 0.005  # of a value: how much an axis that is not constant spans at least


def round_step(span: float, count: int) -> float:
    """The smallest of 1, 2, 5 x 10^n that cuts ``span`` into at most ``count`` parts."""
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= raw * (1 - 1e-9))


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``stop``, with ``ticks`` at round values."""

    low: float
    high: float
    start: float
    stop: float
    ticks: Sequence[float]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log10(v) for v in (self.low, self.high, value)) if self.logarithmic else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def linear(values: Sequence[float], start: float, stop: float, count: int = 5, whole: bool = False) -> Axis:
    """An axis that ends at round values around ``values``; ``whole`` keeps its ticks whole numbers."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        margin = 0.5 if whole else max(abs(high) * 0.05, 1e-3)
        low, high = low - margin, high + margin
    elif not whole and high - low < LEAST * abs(high):  # four digits would not tell its ticks apart
        low, high = low - LEAST * abs(high), high + LEAST * abs(high)
    step = max(round_step(high - low, count), 1.0 if whole else 0.0)
    if whole:  # rounds: no empty space beyond the last one
        first, last = math.ceil(low / step), math.floor(high / step)
        return Axis(low, high, start, stop, [i * step for i in range(first, last + 1)])
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, start, stop, [i * step for i in range(first, last + 1)])


def decades(values: Sequence[float], start: float, stop: float) -> Axis:
    """A logarithmic axis from a power of ten to a power of ten around positive ``values``."""
    powers = [math.log10(v) for v in values if v > 0] or [0.0]
    first, last = math.floor(min(powers)), math.ceil(max(powers))
    last = max(last, first + 1)
    step = math.ceil((last - first) / 6)
    return Axis(10.0**first, 10.0**last, start, stop, [10.0**i for i in range(first, last + 1, step)], logarithmic=True)
