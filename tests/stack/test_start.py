"""Clients that begin apart, and tensors that are frozen: what a client's row holds before and after it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pfedmma.stack.answers import Answers
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.layout import Layout
from pfedmma.stack.offload import Budget
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.pool import Pool
from pfedmma.stack.rules import ANSWERS, CONTROL, MEAN, OWN, PERSONAL, SERVERS, UNIFORM
from pfedmma.stack.start import Start

CPU = torch.device("cpu")
# Columns: sent sent | own own own | ice
LAYOUT = Layout({"ice": (1,), "own": (3,), "sent": (2,)}, {"sent": MEAN}, frozen=["ice"])
RESET = OptimizerConfig()
COMMON = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
SHARED = torch.tensor([-1.0, -2.0])  # what the server came to since
LOCAL = torch.tensor([[10.0, 20.0, 30.0, 40.0, 50.0, 99.0]])  # after training; nobody may keep the 99


class Draws:
    """Client i begins with [100 i, 100 i + 1, 100 i + 2]; ``asked``: of whom that was wanted."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, client: int) -> Tensor:
        self.asked.append(client)
        return 100.0 * client + torch.arange(3.0)


def new_states(draws: Draws | None = None, answers: str = SERVERS, optimizer: OptimizerConfig = RESET, host: float = 1e6) -> ClientStates:
    return ClientStates(LAYOUT, Start(COMMON, draws), optimizer, CPU, Budget(host=host), answers)


# The layout.


def test_what_is_frozen_lies_behind_what_is_private_behind_what_is_sent() -> None:
    layout = Layout({"a": (2,), "b": (1,), "c": (2, 2), "d": (3,)}, {"d": MEAN, "b": UNIFORM}, frozen=["a"])
    assert list(layout.offsets.items()) == [("d", 0), ("b", 3), ("c", 4), ("a", 8)]
    assert (layout.exchanged_size, layout.trained_size, layout.size, layout.private) == (4, 8, 10, slice(4, 8))
    flat = torch.arange(10.0)
    assert layout.views(flat)["a"].tolist() == [8.0, 9.0]
    assert layout.part(layout.private, flat[4:8])["c"].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    trained = layout.part(slice(0, layout.trained_size), flat[:8])
    assert list(trained) == ["d", "b", "c"] and trained["c"].tolist() == [[4.0, 5.0], [6.0, 7.0]]


def test_layouts_are_the_same_if_a_vector_means_the_same() -> None:
    shapes = {"a": (2,), "b": (2,)}
    assert Layout(shapes, {"a": MEAN}) == Layout({"b": (2,), "a": (2,)}, {"a": MEAN})
    others = [Layout(shapes, {"a": UNIFORM}), Layout(shapes, {"a": MEAN}, ["b"]), Layout(shapes, {})]
    others.append(Layout({"a": (2,), "b": (1, 2)}, {"a": MEAN}))
    assert all(Layout(shapes, {"a": MEAN}) != other for other in others)


def test_nothing_is_both_sent_and_frozen() -> None:
    with pytest.raises(AssertionError):
        Layout({"a": (2,)}, {"a": MEAN}, frozen=["a"])


# Private tensors.


@pytest.mark.parametrize("answers", ANSWERS)
def test_a_client_that_has_not_trained_begins_with_its_own_draw(answers: str) -> None:
    states = new_states(Draws(), answers)
    wanted = [[-1.0, -2.0, 300.0, 301.0, 302.0, 6.0], [-1.0, -2.0, 0.0, 1.0, 2.0, 6.0]]
    assert states.gather([3, 0], SHARED).tolist() == wanted
    assert states.gather_to_train([3, 0], SHARED).tolist() == wanted
    assert states.gather_to_answer([3, 0], SHARED).tolist() == wanted
    without = new_states(None, answers).gather([3, 0], SHARED).tolist()
    assert without == 2 * [[-1.0, -2.0, 3.0, 4.0, 5.0, 6.0]]


@pytest.mark.parametrize("host", [0.0, 1e6], ids=["disk", "memory"])
def test_a_client_that_has_trained_has_what_it_came_to(host: float) -> None:
    draws = Draws()
    states = new_states(draws, host=host)
    states.scatter([3], LOCAL)
    states.prefetch([3, 1])  # the row of one of them has to be brought from the disk
    assert states.gather([3, 1], SHARED).tolist() == [[-1.0, -2.0, 30.0, 40.0, 50.0, 6.0], [-1.0, -2.0, 100.0, 101.0, 102.0, 6.0]]
    assert draws.asked == [1]


def test_a_client_that_answers_with_its_own_has_the_common_frozen_tensors() -> None:
    states = new_states(Draws(), OWN)
    states.scatter([3], LOCAL)
    assert states.gather_to_answer([3], SHARED).tolist() == [[10.0, 20.0, 30.0, 40.0, 50.0, 6.0]]
    assert states.gather([3], SHARED).tolist() == [[-1.0, -2.0, 30.0, 40.0, 50.0, 6.0]]


def test_nothing_is_kept_of_clients_that_nobody_trained() -> None:
    draws = Draws()
    states = new_states(draws)
    states.gather([7], SHARED)
    states.prefetch([8, 9])
    assert draws.asked == [7]  # and of none of 100,000 others
    assert len(states.own) == 0 and sum(states.own.bytes_by_place().values()) == 0
    states.gather([7], SHARED)
    assert draws.asked == [7, 7]


def test_clients_that_begin_apart_are_told_apart() -> None:
    """Otherwise one of them would be tested for all."""
    apart, alike = (Answers(new_states(draws), SHARED, Pool(), reads=0) for draws in (Draws(), None))
    assert apart.own(5) and not alike.own(5)


# Frozen tensors.


def test_a_row_of_a_client_and_its_optimizer_has_no_room_for_what_is_frozen(tmp_path: Path) -> None:
    states = new_states(optimizer=OptimizerConfig(name="adam", state="persist"))
    assert states.widths() == {"private": 3, "optimizer.mean": 5, "optimizer.square": 5, "optimizer.step": 1}
    assert {name: tensor.shape[1] for name, tensor in states.gather_optimizer([0]).items()} == {"mean": 5, "square": 5, "step": 1}
    assert new_states(answers=OWN).widths() == {"private": 5}


# What is kept beside.


def test_a_personal_model_begins_as_its_client_and_answers_once_it_is_kept() -> None:
    states = new_states(Draws(), PERSONAL)
    assert states.gather_personal([3, 0]).tolist() == [[1.0, 2.0, 300.0, 301.0, 302.0, 6.0], [1.0, 2.0, 0.0, 1.0, 2.0, 6.0]]
    states.keep_beside(PERSONAL, [3], LOCAL[:, : LAYOUT.trained_size])
    answers = [[10.0, 20.0, 30.0, 40.0, 50.0, 6.0], [-1.0, -2.0, 0.0, 1.0, 2.0, 6.0]]
    assert states.gather_to_answer([3, 0], SHARED).tolist() == answers
    assert states.gather_personal([3]).tolist() == answers[:1]
    assert states.gather([3], SHARED).tolist() == [[-1.0, -2.0, 300.0, 301.0, 302.0, 6.0]]  # what it trains in a round is apart


def test_a_client_with_a_personal_model_is_not_as_others() -> None:
    states = new_states(None, PERSONAL)
    states.keep_beside(PERSONAL, [3], LOCAL[:, : LAYOUT.trained_size])
    assert [states.has_own(client) for client in (3, 0)] == [True, False]


def test_a_control_variate_is_zero_until_it_is_kept() -> None:
    states = ClientStates(LAYOUT, Start(COMMON), RESET, CPU, controls=True)
    states.keep_beside(CONTROL, [4], torch.tensor([[7.0, 8.0]]))
    assert states.gather_controls([4, 0]).tolist() == [[7.0, 8.0], [0.0, 0.0]]
