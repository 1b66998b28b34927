"""Server optimizers by hand, against torch's where it has the same, and their state in a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pfedmma.server.rules import SHARED, ServerRules
from pfedmma.server.settings import ServerConfig, rules_from
from pfedmma.system.errors import UserError
from tests.server.made import SIZE, server_of, uploads_of


def rules(rule: str, lr: float = 0.0, betas: tuple[float, ...] = (), tau: float = 1e-3) -> ServerRules:
    return rules_from(ServerConfig(rule=rule, lr=lr, betas=betas, tau=tau), False, None, ServerRules(), SIZE)


def after(rule: ServerRules, *means: list[float]) -> list[Tensor]:
    """What clients receive after each round, from 1s on, when one client uploads these."""
    server, seen = server_of(rule), []
    for number, mean in enumerate(means, start=1):
        server.round(uploads_of(torch.tensor([mean]), number))
        seen.append(server.shared)
    return seen


def test_average_is_fedavg_itself() -> None:
    """The same function, with no state: byte for byte what it was."""
    assert rules("average") == ServerRules()


def test_momentum_by_hand() -> None:
    """From 1 to 3: a way of 2, taken half. Then at 2, the mean is 2 again: no way but 0.9 of the one before."""
    first, second = after(rules("momentum", lr=0.5), [3.0, 1.0, 1.0], [2.0, 1.0, 1.0])
    torch.testing.assert_close(first, torch.tensor([2.0, 1.0, 1.0]))
    torch.testing.assert_close(second, torch.tensor([2.0 + 0.5 * 0.9 * 2.0, 1.0, 1.0]))


def test_momentum_without_memory_at_rate_1_is_the_mean() -> None:
    assert after(rules("momentum", betas=(0.0,)), [3.0, 0.5, -1.0])[0].tolist() == [3.0, 0.5, -1.0]


def test_momentum_is_that_of_torch() -> None:
    """Of a loss whose gradient is minus the way."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.3, momentum=0.8)
    server = server_of(rules("momentum", lr=0.3, betas=(0.8,)))
    for round_ in range(1, 5):
        way = torch.tensor([0.5, -1.0, 0.1 * round_])
        server.round(uploads_of((server.shared + way)[None], round_))
        parameter.grad = -way
        optimizer.step()
    torch.testing.assert_close(server.shared, parameter.detach())


@pytest.mark.parametrize(
    ("rule", "square"),
    [("adagrad", 0.01 + 4.0), ("adam", 0.99 * 0.01 + 0.01 * 4.0), ("yogi", 0.01 + 0.01 * 4.0)],
)
def test_adaptive_rules_by_hand(rule: str, square: float) -> None:
    """A way of 2 at tau 0.1, so that v begins at 0.01; Adagrad has no memory of ways, the others take a tenth of the first."""
    (end,) = after(rules(rule, lr=0.5, tau=0.1), [3.0, 1.0, 1.0])
    moment = 2.0 if rule == "adagrad" else 0.1 * 2.0
    torch.testing.assert_close(end, torch.tensor([1.0 + 0.5 * moment / (math.sqrt(square) + 0.1), 1.0, 1.0]))


def test_yogi_forgets_large_squares_slowly() -> None:
    """Where Adam's v falls by a hundredth of itself, Yogi's falls by a hundredth of the new square."""
    adam, yogi = server_of(rules("adam")), server_of(rules("yogi"))
    for server in (adam, yogi):
        server.state["square"] = torch.full((SIZE,), 4.0)
        server.round(uploads_of((server.shared + 1.0)[None]))
    torch.testing.assert_close(adam.state["square"], torch.full((SIZE,), 0.99 * 4.0 + 0.01))
    torch.testing.assert_close(yogi.state["square"], torch.full((SIZE,), 4.0 - 0.01))


@pytest.mark.parametrize(("rule", "lr"), [("momentum", 1.0), ("adagrad", 0.01), ("adam", 0.01), ("yogi", 0.01)])
def test_a_rate_that_is_not_given_is_the_rules_own(rule: str, lr: float) -> None:
    (end,), (wanted,) = after(rules(rule), [3.0, 1.0, 1.0]), after(rules(rule, lr=lr), [3.0, 1.0, 1.0])
    assert torch.equal(end, wanted) and end[0] > 1.0


@pytest.mark.parametrize("rule", ["momentum", "adagrad", "adam", "yogi"])
def test_a_rule_goes_on_from_its_state(rule: str) -> None:
    server, later = server_of(rules(rule)), server_of(rules(rule))
    server.round(uploads_of(torch.tensor([[3.0, 0.0, 1.0]])))
    assert server.state.keys() == later.state.keys() > {SHARED}
    later.load_state_dict({name: tensor.clone() for name, tensor in server.state_dict().items()})
    for one in (server, later):
        one.round(uploads_of(torch.tensor([[2.0, 2.0, 2.0]]), 2))
    assert torch.equal(server.shared, later.shared)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "adma"}, "rule: .adma. is not known; choose one of average, momentum"),
        ({"rule": "adam", "betas": (0.9,)}, "betas: adam has 2, not 1"),
        ({"rule": "momentum", "betas": (0.9, 0.99)}, "betas: momentum has 1, not 2"),
        ({"rule": "adam", "betas": (0.9, 1.0)}, "betas"),
        ({"tau": 0.0}, "tau"),
        ({"lr": -1.0}, "lr"),
        ({"trim": 0.5}, "trim: must be from 0 to less than 0.5"),
        ({"robust": "mean"}, "robust: .mean. is not known; choose one of no, median"),
    ],
)
def test_what_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServerConfig(**settings)
