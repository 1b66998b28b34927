"""Who takes part in a round: by hand, over many rounds, and the settings that cannot go together."""

from __future__ import annotations

import itertools

import pytest

from pfedmma.config.schema import load
from pfedmma.engine import participation
from pfedmma.engine.federation import FederationConfig
from pfedmma.system.errors import UserError
from tests.support import oracle

ROUNDS = 2000


def poisson(share: float) -> FederationConfig:
    return FederationConfig(participation=share, sampling="poisson")


def cohorts(clients: int, federation: FederationConfig, rounds: int = ROUNDS, seed: int = 0) -> list[list[int]]:
    return [participation.sample(range(clients), federation, seed, round_) for round_ in range(1, rounds + 1)]


# Fixed sampling.


def test_fixed_cohorts_are_as_many_in_every_round() -> None:
    for round_, cohort in enumerate(cohorts(10, FederationConfig(participation=0.4), rounds=20), start=1):
        assert cohort == sorted(oracle.participants(10, 0.4, 0, round_)) and len(cohort) == 4


def test_all_in_round_1_alone() -> None:
    drawn, all_first = (FederationConfig(participation=0.4, first_round=first) for first in ("participation", "all"))
    first, *rest = cohorts(10, all_first, rounds=5)
    assert first == list(range(10)) and rest == cohorts(10, drawn, rounds=5)[1:]
    assert [participation.wanted(10, all_first, round_) for round_ in (1, 2)] == [10, 4]


@pytest.mark.parametrize(
    ("clients", "share", "times", "drawn"),
    [
        (100, 0.1, 1.0, 10),
        (100, 0.1, 1.1, 11),  # 1.1 x 10 is 11.000000000000002 in floating point
        (100, 0.1, 1.3, 13),
        (100, 0.1, 1.31, 14),  # 13.1, rounded up
        (10, 0.9, 2.0, 10),  # there are no more
        (10, 0.01, 1.5, 2),  # one is wanted
    ],
)
def test_how_many_are_drawn_in_addition(clients: int, share: float, times: float, drawn: int) -> None:
    more = FederationConfig(participation=share, over_selection=times)
    plain = FederationConfig(participation=share)
    for cohort, wanted in zip(cohorts(clients, more, rounds=5), cohorts(clients, plain, rounds=5), strict=True):
        assert len(cohort) == len(set(cohort)) == drawn and set(wanted) <= set(cohort) and cohort == sorted(cohort)
    assert participation.wanted(clients, more, 3) == participation.count(clients, share)
    assert participation.training(clients, more) == drawn


# Poisson sampling.


def test_each_client_takes_part_with_the_probability_that_is_asked_for() -> None:
    """Standard errors: of a client's rate sqrt(.3 .7 / 2000) = .0102, of the mean size sqrt(40 .3 .7 / 2000) = .065."""
    drawn = cohorts(40, poisson(0.3))
    rates = [sum(client in cohort for cohort in drawn) / ROUNDS for client in range(40)]
    assert max(abs(rate - 0.3) for rate in rates) < 4 * 0.0102
    sizes = [len(cohort) for cohort in drawn]
    assert abs(sum(sizes) / ROUNDS - 12) < 4 * 0.065
    # Binomial: the variance is 8.4, that of its estimate about 8.4 sqrt(2 / 2000) = .27.
    assert abs(sum((size - 12) ** 2 for size in sizes) / ROUNDS - 8.4) < 4 * 0.27


def test_clients_are_drawn_by_themselves() -> None:
    """Two clients take part together in .3 x .3 of the rounds, and one in two rounds running as often; the error is .0064."""
    drawn = cohorts(2, poisson(0.3))
    both = sum(len(cohort) == 2 for cohort in drawn) / ROUNDS
    again = sum(0 in one and 0 in next_ for one, next_ in itertools.pairwise(drawn)) / ROUNDS
    assert abs(both - 0.09) < 4 * 0.0064 and abs(again - 0.09) < 4 * 0.0064


def test_a_draw_knows_no_other_client() -> None:
    few, many = cohorts(5, poisson(0.3), rounds=50), cohorts(20, poisson(0.3), rounds=50)
    assert few == [[i for i in cohort if i < 5] for cohort in many]
    assert few != cohorts(5, poisson(0.3), rounds=50, seed=1)
    assert participation.sample([7, 3, 9], poisson(1.0), 0, 1) == [3, 7, 9]


def test_a_round_may_have_nobody() -> None:
    """Of 4 clients with p = .2, .8^4 = .41 of the rounds; the error is .011."""
    assert abs(sum(not cohort for cohort in cohorts(4, poisson(0.2))) / ROUNDS - 0.4096) < 4 * 0.011


# Numbers that are known beforehand.


def test_the_expected_number_depends_on_no_draw() -> None:
    assert participation.expected(1000, poisson(0.0105)) == 10.5 == participation.training(1000, poisson(0.0105))
    assert participation.wanted(1000, poisson(0.0105), 1) == 1000  # whoever comes counts
    more = FederationConfig(participation=0.1, over_selection=1.3, dropout=0.2)
    assert participation.expected(100, more) == 10.0 and participation.training(100, more) == 13.0
    assert participation.expected(7, FederationConfig(participation=0.01)) == 1.0


# Refusals.


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["sampling=bernoulli"], r"federation\.sampling: 'bernoulli' is not known; choose one of fixed, poisson"),
        (["dropout=1"], r"federation\.dropout: must be at least 0 and less than 1, not 1"),
        (["dropout=.nan"], r"federation\.dropout: must be at least 0 and less than 1, not nan"),
        (["speeds=-0.1"], r"federation\.speeds: must be at least 0, not -0\.1"),
        (["speeds=11"], r"federation\.speeds: must be at most 10, not 11"),
        (["step_seconds=0"], r"federation\.step_seconds: must be greater than 0, not 0"),
        (["deadline=-1"], r"federation\.deadline: must be at least 0, not -1"),
        (["over_selection=0.9", "participation=0.5"], r"federation\.over_selection: must be at least 1, not 0\.9"),
        (
            ["over_selection=1.3"],
            r"federation\.over_selection: with participation=1 all clients are drawn already; set a participation below",
        ),
        (["over_selection=1.3", "participation=0.5", "sampling=poisson"], r"federation\.over_selection: goes with sampling=fixed; "),
        (["first_round=all", "sampling=poisson"], r"federation\.first_round: all goes with sampling=fixed; .*: first_round=participation"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(settings: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        load(None, [f"federation.{setting}" for setting in settings])
    assert "\n" not in str(error.value)
