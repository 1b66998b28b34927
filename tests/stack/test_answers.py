"""What a client answers with: the server's exchanged tensors, or its own last ones; its own private ones either way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfedmma.stack.answers import Answers
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.layout import Layout
from pfedmma.stack.offload import Budget
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.pool import Pool
from pfedmma.stack.rules import MEAN, OWN, POOL, SERVERS
from pfedmma.stack.start import Start

LAYOUT = Layout({"own": (1,), "sent": (2,)}, {"sent": MEAN})  # columns [sent, sent, own]
INITIAL = torch.tensor([0.1, 0.2, 0.3])
LOCAL = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # of clients 0 and 1 after training; client 2 never trains
SHARED = torch.tensor([8.0, 9.0])  # what the server came to since


def new_states(answers: str, layout: Layout = LAYOUT, host: float = 1e6) -> ClientStates:
    states = ClientStates(layout, Start(INITIAL[: layout.size]), OptimizerConfig(), torch.device("cpu"), Budget(host=host), answers)
    states.scatter([0, 1], LOCAL[:, : layout.size])
    return states


def new_answers(states: ClientStates, reads: int = 0) -> Answers:
    return Answers(states, SHARED, Pool(), reads)


def rows(tensors: dict[str, Tensor]) -> list[list[float]]:
    """[sent, sent, own] of each client."""
    return torch.cat([tensors["sent"], tensors["own"]], dim=1).tolist()


@pytest.mark.parametrize("host", [0.0, 1e6], ids=["disk", "memory"])
@pytest.mark.parametrize(
    ("answers", "wanted"),
    [(SERVERS, [[8.0, 9.0, 6.0], [8.0, 9.0, 0.3], [8.0, 9.0, 3.0]]), (OWN, [[4.0, 5.0, 6.0], [8.0, 9.0, 0.3], [1.0, 2.0, 3.0]])],
    ids=["servers", "own"],
)
def test_answers_by_hand(answers: str, wanted: list[list[float]], host: float) -> None:
    """Of clients 1, 2 and 0; one that never trained has the server's, and the private ones in which all begin."""
    states = new_states(answers, host=host)
    got = new_answers(states).tensors([1, 2, 0])
    assert {name: tuple(tensor.shape) for name, tensor in got.items()} == {"sent": (3, 2), "own": (3, 1)}
    assert torch.equal(torch.tensor(rows(got)), torch.tensor(wanted))
    assert torch.equal(states.gather_to_answer([1, 2, 0], SHARED), torch.tensor(wanted))


@pytest.mark.parametrize("answers", [SERVERS, OWN])
def test_training_begins_with_the_servers(answers: str) -> None:
    """Also where rows are fetched ahead, and after the client has answered."""
    states = new_states(answers, host=0.0)
    wanted = torch.tensor([[8.0, 9.0, 6.0], [8.0, 9.0, 0.3], [8.0, 9.0, 3.0]])
    for ahead in (False, True):
        new_answers(states).tensors([1, 2, 0])
        if ahead:
            states.prefetch([1, 2, 0])
        assert torch.equal(states.gather_to_train([1, 2, 0], SHARED), wanted)
        assert torch.equal(states.gather([1, 2, 0], SHARED), wanted)


def test_the_own_answer_is_the_last_one_and_a_copy() -> None:
    states = new_states(OWN)
    states.gather_to_answer([0], SHARED).fill_(7.0)
    states.scatter([1], torch.tensor([[-1.0, -2.0, -3.0]]))
    assert states.gather_to_answer([0, 1], SHARED).tolist() == [[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]


def test_what_is_a_clients_own() -> None:
    """All its tensors where it answers with them, so that checkpoints hold them."""
    servers, own = new_states(SERVERS), new_states(OWN)
    assert servers.widths() == {"private": 1} and own.widths() == {"private": 3}
    assert servers.own[1].tolist() == [6.0] and own.own[1].tolist() == [4.0, 5.0, 6.0]


def test_whose_answer_may_differ_from_that_of_who_never_trained() -> None:
    """Without private tensors nobody's does, unless clients answer with their own, or read others."""
    assert [new_answers(new_states(SERVERS)).own(client) for client in range(3)] == [True, True, False]
    everything = Layout({"sent": (2,)}, {"sent": MEAN})
    assert [new_answers(new_states(SERVERS, everything)).own(client) for client in range(3)] == [False] * 3
    assert [new_answers(new_states(OWN, everything)).own(client) for client in range(3)] == [True, True, False]
    assert [new_answers(new_states(SERVERS, everything), reads=1).own(client) for client in range(3)] == [True] * 3


def test_others_are_those_of_the_servers_pool() -> None:
    layout = Layout({"own": (1,), "sent": (2,)}, {"sent": POOL})
    answers = new_answers(new_states(OWN, layout), reads=1)
    assert answers.others([0]) is None
    answers.pool.rows.update({0: LOCAL[0, :2], 1: LOCAL[1, :2]})
    others = answers.others([0, 2])
    assert others is not None and others.tensors["sent"].tolist() == [[[4.0, 5.0]], [[4.0, 5.0]]]  # [8, 9] is nearer to client 1's


@pytest.mark.parametrize(("answers", "read"), [(OWN, 2.0), (SERVERS, 5.0)])
def test_who_answers_with_its_own_has_the_others_that_it_trained_with(answers: str, read: float) -> None:
    """Client 1 has sent 2 and then, in the round in which client 0 took part as well, 5; client 2, which did not, reads the 5."""
    layout = Layout({"sent": (1,)}, {"sent": POOL})
    found = Answers(
        ClientStates(layout, Start(torch.zeros(1)), OptimizerConfig(), torch.device("cpu"), answers=answers), torch.zeros(1), Pool(), 1
    )
    found.pool.rows = {0: torch.tensor([1.0]), 1: torch.tensor([2.0])}
    found.pool.keep([0, 1], torch.tensor([[3.0], [5.0]]), torch.zeros(1))
    others = found.others([0, 2])
    assert others is not None and others.tensors["sent"].flatten().tolist() == [read, 3.0]
