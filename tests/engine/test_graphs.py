"""Steps as graphs: the buffers that they work in, without a GPU. A stand-in captures as CUDA does: it runs the step and can repeat it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfedmma.engine import graphs
from pfedmma.engine.batches import by_steps
from pfedmma.engine.graphs import Graphs
from pfedmma.engine.local import LocalTraining
from pfedmma.stack.rules import NOTHING, Given
from tests.support import stacks


class Captured:
    """Counts captures and replays of steps."""

    def __init__(self) -> None:
        self.captures, self.replays = 0, 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captures += 1
        for _ in range(2):
            run()  # a warm-up changes the graph's own tensors

        def replay() -> Tensor:
            self.replays += 1
            return run()

        return replay


def trained(training: LocalTraining, used: Graphs | None, given: Given = NOTHING) -> tuple[Tensor, Tensor]:
    """Parameters and losses of the clients of `stacks` after a local training."""
    clients = by_steps(stacks.new_clients(), training.batches.work)
    params = stacks.gathered(stacks.new_members(training.method), [client.id for client in clients]).clone()
    losses = dataclasses.replace(training, graphs=used).train(clients, params, None, 1, given)
    return params, losses


def test_a_training_by_graphs_has_the_very_bits_of_the_plain_one(tiny_clip: nn.Module) -> None:
    """5 clients take 2 steps, then 3 take 2, two of them 2 and one 0: the wide ones plainly, the others from the second time on."""
    training = stacks.new_training(stacks.new_method(tiny_clip, name="promptfl", dim=8))
    capture = Captured()
    got, wanted = trained(training, Graphs(capture)), trained(training, None)
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
    assert capture.captures >= 1 and capture.replays > capture.captures  # one of each is the trial


def simple(
    factor: float = 1.0,
) -> Callable[..., Tensor]:
    """A step that adds to parameters and counts, so that what it did is seen."""

    def step(params: Tensor, state: Any, fixed: Any, batch: Any, scale: Any) -> Tensor:
        params += factor * batch.weights.sum() + fixed["own"]
        state["step"] += 1
        scale.factor *= 0.5
        return params.sum(dim=1)

    return step


def inputs(clients: int = 2, batch: int = 3, value: float = 1.0) -> Any:
    labels = torch.zeros(clients, batch, dtype=torch.long)
    images = graphs.Batch(torch.zeros(clients * batch, 3), labels, torch.full((clients, batch), value), labels[:, 0])
    scale = graphs.LossScale(clients, torch.device("cpu"), enabled=False)
    return torch.zeros(clients, 4), {"step": torch.zeros(clients, 1)}, {"own": torch.ones(clients, 1)}, images, scale


def test_each_step_reads_and_changes_what_it_is_given() -> None:
    used = Graphs(capture := Captured())
    for value in (1.0, 2.0, 3.0):
        given = inputs(value=value)
        losses = used(simple(), 0, given)
        params, state, _, _, scale = given
        assert torch.equal(params, torch.full((2, 4), 6 * value + 1)) and losses.tolist() == [4 * (6 * value + 1)] * 2
        assert state["step"].tolist() == [[1.0], [1.0]] and scale.factor.tolist() == [2048.0] * 2
    assert (capture.captures, capture.replays) == (1, 3), "the first step is plain; one replay is the trial"


def test_steps_of_other_shapes_or_of_another_kind_have_graphs_of_their_own_up_to_a_number() -> None:
    used = Graphs(capture := Captured())
    for _ in range(2):
        for kind in (0, 1):
            for batch in range(1, 7):
                used(simple(), kind, inputs(batch=batch))
    assert capture.captures == graphs.MOST


def test_wide_steps_are_plain() -> None:
    used = Graphs(capture := Captured())
    for _ in range(3):
        used(simple(), 0, inputs(clients=graphs.WIDEST + 1))
    assert capture.captures == 0


@pytest.mark.parametrize("wrong", ["fails", "computes something else"])
def test_a_graph_that_is_not_to_be_had_or_computes_something_else_is_left(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    def capture(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if wrong == "fails":
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: torch.zeros(2)  # and leaves the parameters as they are

    used = Graphs(capture)
    for _ in range(4):
        params, *others = inputs()
        used(simple(), 0, (params, *others))
        assert torch.equal(params, torch.full((2, 4), 7.0))
    said = capsys.readouterr().err
    assert said.count("warning: federation.graphs") == 1
    assert ("not permitted" if wrong == "fails" else "does not compute what the plain step does") in said


def test_graphs_are_for_gpus() -> None:
    assert Graphs.from_setting("auto", torch.device("cpu")) is None and Graphs.from_setting("off", torch.device("cuda")) is None
    assert isinstance(Graphs.from_setting("auto", torch.device("cuda")), Graphs)
