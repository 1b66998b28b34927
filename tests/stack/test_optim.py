"""Learning rates that fall from round to round, against torch's schedule and against the same rates set by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pfedmma.stack import optim
from pfedmma.stack.optim import OptimizerConfig, rate_factor
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small, stacks


def test_the_rates_of_the_rounds_are_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    plain = torch.optim.SGD([parameter], lr=0.003)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(plain, T_max=500)
    config = OptimizerConfig(lr=0.003, cosine_rounds=500)
    for round_ in range(1, 501):
        assert config.lr * rate_factor(config, round_) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12), round_
        plain.step()
        schedule.step()
    assert rate_factor(config, 1) == 1.0 and rate_factor(config, 251) == pytest.approx(0.5)
    assert rate_factor(config, 501) == rate_factor(config, 600) == 0.0
    assert rate_factor(config, 0) == 1.0  # of clients that come when the rounds are over
    assert rate_factor(OptimizerConfig(), 77) == 1.0


def trained(clip: nn.Module, name: str, optimizer: OptimizerConfig, round_: int, factor: float = 1.0) -> Tensor:
    """Parameters [C,P] after a round of all clients, with all rates ``factor`` times as large."""
    method = stacks.new_method(clip, name=name)
    if not method.learning_rates:
        optimizer = dataclasses.replace(optimizer, lr=factor * optimizer.lr)
    training, members = stacks.new_training(method, optimizer), stacks.new_members(method, optimizer)
    if training.rates is not None:
        training.rates.mul_(factor)
    clients = sorted(stacks.new_clients(), key=lambda client: -len(client.train))
    params = members.states.gather([client.id for client in clients], members.server.shared)
    state = members.states.gather_optimizer([client.id for client in clients])
    training.train(clients, params, state, round_)
    assert "rate" not in state  # nothing of it is kept
    return params


@pytest.mark.parametrize(("name", "kind"), [("promptfl", "sgd"), ("promptfl", "adamw"), ("pfedmoap", "adam")])
def test_a_round_trains_as_with_its_rate_set_by_hand(tiny_clip: nn.Module, name: str, kind: str) -> None:
    """Rates of a method's own fall, too."""
    optimizer = OptimizerConfig(kind, lr=0.01, eps=0.1, cosine_rounds=4)
    constant = dataclasses.replace(optimizer, cosine_rounds=0)
    wanted = trained(tiny_clip, name, constant, 3, 0.5)
    torch.testing.assert_close(trained(tiny_clip, name, optimizer, 3), wanted, rtol=1e-6, atol=1e-7)
    assert (trained(tiny_clip, name, constant, 3) - wanted).abs().max() > 1e-4


def test_the_state_of_some_columns_keeps_the_rate() -> None:
    config = OptimizerConfig(cosine_rounds=2)
    state = optim.in_round(config, optim.initial_state(config, 3, 5, torch.device("cpu")), 2)
    assert state["rate"].tolist() == [[0.5]] * 3 and optim.part(state, slice(4, 5))["momentum"].shape == (3, 1)
    assert optim.part(state, slice(4, 5))["rate"] is state["rate"]


def test_more_rounds_than_have_a_rate_are_refused(tmp_path: Path) -> None:
    settings = small.settings(tmp_path / "run", "optimizer.cosine_rounds=3", "federation.rounds=4")
    with pytest.raises(UserError, match=r"optimizer\.cosine_rounds: after 3 rounds the learning rate is 0, and federation\.rounds is 4"):
        main(settings)
    assert not (tmp_path / "run").exists()
