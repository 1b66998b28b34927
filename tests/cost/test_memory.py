"""What a client's tensors take: by hand, and beside those that a cohort really holds while it trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pfedmma.config import schema
from pfedmma.cost import memory
from pfedmma.engine import cohort
from pfedmma.engine.cohort import PassWidth, train_cohort
from pfedmma.engine.local import LocalTraining
from pfedmma.engine.local_settings import LocalConfig
from pfedmma.stack.optim import OptimizerConfig
from tests.support.plain_rules import CLIENTS, Numbers, new_run
from tests.support.stacks import new_method

SGD = OptimizerConfig(momentum=0.0)
PLAIN, DITTO, SCAFFOLD = [], ["local.rule=ditto"], ["local.rule=scaffold", "optimizer.momentum=0"]


@pytest.mark.parametrize(
    ("given", "training", "between"),
    [
        (PLAIN, 6, 1),
        (["optimizer.state=persist"], 6, 1 + 2 + 1),
        (["optimizer.name=adam"], 8, 1),
        (DITTO, 6 + 2, 1 + 2),
        (SCAFFOLD, 6 + 1, 1 + 1),
        (["local.fine_tune_epochs=1"], 6, 1 + 2),
    ],
)
def test_numbers_by_hand(tiny_clip: nn.Module, given: list[str], training: int, between: int) -> None:
    """s travels, p does not: two weights, two gradients, two momenta. A client keeps p; its optimizer, which also counts steps."""
    method = Numbers(new_method(tiny_clip).backbone)
    config = schema.load(None, given)
    assert memory.while_training(method, config) == 4 * training
    assert memory.between_rounds(method, config) == 4 * between


@pytest.mark.parametrize(("rule", "given"), [("plain", PLAIN), ("ditto", DITTO), ("scaffold", SCAFFOLD)])
def test_they_are_what_a_cohort_holds(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, rule: str, given: list[str]) -> None:
    """Besides gradients and momenta, which are as many as weights here: weights, the personal model, and c - c_i."""
    training, members = new_run(tiny_clip, LocalConfig(rule), SGD)
    held: list[int] = []
    train, left = LocalTraining.train, cohort.Left

    def spied(self: LocalTraining, *args: Any) -> torch.Tensor:
        correction = args[4].correction
        held.append(0 if correction is None else correction.untyped_storage().nbytes())
        return train(self, *args)

    def leaving(*args: Any) -> cohort.Left:
        held[-1] += sum(tensor.nbytes for tensor in (args[0], args[3]) if tensor is not None)
        return left(*args)

    monkeypatch.setattr(LocalTraining, "train", spied)
    monkeypatch.setattr(cohort, "Left", leaving)
    train_cohort(training, CLIENTS, members, 1, PassWidth(5))
    optimizer_and_gradients = 2 * 4 * training.layout.trained_size
    said = memory.while_training(training.method, schema.load(None, given))
    assert held[-1] == len(CLIENTS) * (said - optimizer_and_gradients)
    assert sum(row.nbytes for rows in (members.states.own, *members.states.beside.values()) for row in rows.values()) == len(
        CLIENTS
    ) * memory.between_rounds(training.method, schema.load(None, given))
