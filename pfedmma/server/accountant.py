"""What the released sums tell of one client: epsilon at a given delta, and the noise that a wanted epsilon takes.

A round releases the sum of ways of norm at most C, plus normal noise of standard deviation z C. Neighbours differ in one client, whose
contribution becomes zero. Without sampling, T such rounds are one Gaussian mechanism with mu = sqrt(T) / z, whose delta is known in closed
form (Balle and Wang, arXiv 1805.06083). Under Poisson sampling it is computed by dp-accounting from privacy loss distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from scipy.special import log_ndtr, ndtr

from pfedmma.system.errors import UserError

LARGEST_EPSILON = 1e6  # above it nothing is protected, and none is told
CLOSE = 1e-9  # relative width of the interval in which a bisection ends
LARGEST_NOISE = 1e6


def epsilon(multiplier: float, rounds: int, delta: float, sampling: float = 1.0) -> float:
    """Epsilon of ``rounds`` rounds with noise ``multiplier`` z, in each of which a client takes part with probability ``sampling``.

    Infinite without noise, 0 without a round.

    Raises:
        UserError: a ``sampling`` below 1 needs the library dp-accounting, which is not installed.
    """
    if rounds == 0:
        return 0.0
    if multiplier == 0.0:
        return math.inf
    return gaussian(math.sqrt(rounds) / multiplier, delta) if sampling == 1.0 else _sampled(multiplier, rounds, delta, sampling)


def multiplier(wanted: float, rounds: int, delta: float, sampling: float = 1.0) -> float:
    """The smallest noise multiplier z with which ``rounds`` rounds have an epsilon of at most ``wanted``.

    Raises:
        UserError: there is none; or as `epsilon`.
    """

    def enough(z: float) -> bool:
        return epsilon(z, rounds, delta, sampling) <= wanted

    upper = 1.0
    while not enough(upper):
        upper *= 2.0
        if upper > LARGEST_NOISE:
            raise UserError(f"privacy.epsilon: no noise makes it {wanted:g} at privacy.delta={delta:g}; raise one of them")
    return _bisected(enough, upper, 1e-4 if sampling < 1.0 else CLOSE)


def gaussian(mu: float, delta: float) -> float:
    """Epsilon of a Gaussian mechanism of which sensitivity / standard deviation is ``mu``."""

    def enough(eps: float) -> bool:
        # exp(eps) alone would overflow; its product with the tail does not.
        return ndtr(mu / 2 - eps / mu) - math.exp(min(0.0, eps + log_ndtr(-mu / 2 - eps / mu))) <= delta

    upper = 1.0
    while not enough(upper):
        upper *= 2.0
        if upper > LARGEST_EPSILON:
            return math.inf
    return 0.0 if enough(0.0) else _bisected(enough, upper, CLOSE)


def _bisected(enough: Callable[[float], bool], upper: float, close: float) -> float:
    """The smallest number in 0 to ``upper`` that is ``enough``, which ``upper`` is, from above."""
    lower = 0.0
    while upper - lower > close * upper:
        middle = (lower + upper) / 2
        lower, upper = (lower, middle) if enough(middle) else (middle, upper)
    return upper


@lru_cache(maxsize=1024)
def _sampled(multiplier: float, rounds: int, delta: float, sampling: float) -> float:
    dp: Any = _library()
    grid = 1e-3 * max(1.0, multiplier**-2)  # of privacy losses, rounded up; with little noise they reach far
    accountant = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, grid)
    accountant.compose(dp.PoissonSampledDpEvent(sampling, dp.GaussianDpEvent(multiplier)), rounds)
    return float(accountant.get_epsilon(delta))


def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
    except ImportError:
        raise UserError(
            "privacy: with federation.participation below 1 epsilon is computed by dp-accounting, which is not installed: "
            'pip install -e ".[privacy]"'
        ) from None
    return dp_accounting
