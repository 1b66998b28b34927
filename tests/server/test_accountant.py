"""Epsilon against values that other accountants give, and its limits."""

from __future__ import annotations

import math
import sys

import pytest

from pfedmma.server import accountant
from pfedmma.server.account import Account
from pfedmma.system.errors import UserError

DELTA = 1e-5


@pytest.mark.parametrize(("z", "rounds", "wanted"), [(1.0, 1, 4.377178), (3.796182, 40, 8.0), (23.594586, 40, 1.0), (1.0954, 7, 12.6449)])
def test_without_sampling_it_is_the_closed_form(z: float, rounds: int, wanted: float) -> None:
    """The values are those of dp-accounting and of opacus."""
    assert accountant.epsilon(z, rounds, DELTA) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("wanted", [8.0, 1.0, 0.01])
def test_the_noise_for_an_epsilon_gives_it(wanted: float) -> None:
    z = accountant.multiplier(wanted, 40, DELTA)
    assert accountant.epsilon(z, 40, DELTA) == pytest.approx(wanted, rel=1e-6)
    assert accountant.epsilon(z, 40, DELTA) <= wanted < accountant.epsilon(0.999 * z, 40, DELTA)


def test_under_sampling_it_is_that_of_loss_distributions() -> None:
    pytest.importorskip("dp_accounting")
    assert accountant.epsilon(1.0, 20, DELTA, 0.1) == pytest.approx(3.5907, abs=1e-3)
    assert accountant.epsilon(1.0954, 20, DELTA, 0.1) == pytest.approx(3.0, abs=2e-3)
    assert accountant.epsilon(1.0954, 20, DELTA, 0.1) < accountant.epsilon(1.0954, 20, DELTA)
    z = accountant.multiplier(3.0, 20, DELTA, 0.1)
    assert z == pytest.approx(1.0954, abs=1e-3) and accountant.epsilon(z, 20, DELTA, 0.1) <= 3.0


def test_little_noise_is_told_without_waiting_for_it() -> None:
    """What the grid of losses is made coarser for is rounded up, never down."""
    pytest.importorskip("dp_accounting")
    assert accountant.epsilon(0.05, 20, DELTA, 0.1) >= 1000.0


def test_the_ends() -> None:
    assert accountant.epsilon(1.0, 0, DELTA) == 0.0
    assert accountant.epsilon(0.0, 3, DELTA) == math.inf
    assert accountant.epsilon(1e5, 1, 0.5) == 0.0
    with pytest.raises(UserError, match=r"^privacy\.epsilon: no noise makes it 1e-12"):
        accountant.multiplier(1e-12, 10, 1e-300)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    assert accountant.epsilon(1.0, 2, DELTA) > 0  # needed under sampling alone
    with pytest.raises(UserError, match=r"dp-accounting, which is not installed: pip install -e \"\.\[privacy\]\"$"):
        accountant.epsilon(1.2345, 2, DELTA, 0.25)


def cohort(round_: int) -> list[int]:
    """Client 1 takes part in rounds 1, 2 and 3, client 2 in round 2, client 7 in round 3, which has three participants."""
    return {1: [1], 2: [1, 2], 3: [1, 5, 7]}[round_]


def account(noise: str, secure_sum: bool) -> Account:
    return Account(2.0, DELTA, 1.0, noise, secure_sum, cohort)


def test_what_has_been_told_after_each_round() -> None:
    told = [account("server", False).after(round_) for round_ in (1, 2, 3)]
    assert [each.epsilon_outsider for each in told] == [accountant.epsilon(2.0, round_, DELTA) for round_ in (1, 2, 3)]
    assert [each.epsilon_known_cohorts for each in told] == [each.epsilon_outsider for each in told]
    assert told[2].noise_multiplier == 2.0 and told[2].delta == DELTA


def test_who_took_part_less_has_told_less() -> None:
    rotating = Account(2.0, DELTA, 1.0, "server", False, lambda round_: [round_])
    assert rotating.after(3).epsilon_known_cohorts == accountant.epsilon(2.0, 1, DELTA)


@pytest.mark.parametrize("secure_sum", [False, True])
def test_a_server_that_adds_the_noise_itself_is_not_bound_by_it(secure_sum: bool) -> None:
    assert account("server", secure_sum).after(1).epsilon_server == math.inf


def test_what_the_server_sees_of_clients_that_add_noise() -> None:
    """With a secure sum the noisy sum; without, uploads with a share of the noise: of client 1, rounds of 1, 2 and 3 participants."""
    secure, single = account("clients", True).after(3), account("clients", False).after(3)
    assert secure.epsilon_server == secure.epsilon_known_cohorts
    assert single.epsilon_server == accountant.gaussian(math.sqrt(1 + 2 + 3) / 2.0, DELTA) > secure.epsilon_server
