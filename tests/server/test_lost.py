"""Uploads that do not come, by hand: those that do are weighted among themselves, and without any the server stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from pfedmma.comm.world import World
from pfedmma.server.rules import SHARED, ServerRules, ServerState, Uploads
from pfedmma.server.server import Server
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import MEAN, POOL, UNIFORM

RULES = Layout({"a": (1,), "b": (1,), "c": (1,)}, {"a": MEAN, "b": UNIFORM, "c": POOL})


def new_server(rules: ServerRules | None = None) -> Server:
    """A server whose clients begin with 7s; clients 2 and 5 have sent 1 and 2."""
    server = Server(RULES, {SHARED: torch.full((3,), 7.0)}, World(0, 1, torch.device("cpu")), rules or ServerRules())
    server.pool.rows = {2: torch.tensor([1.0]), 5: torch.tensor([2.0])}
    return server


def kept(server: Server) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in server.state_dict().items()}


def test_weights_are_those_of_the_uploads_that_come() -> None:
    """Clients of 1 and 3 images have sent; one of 100 images has not."""
    server = new_server()
    server.round(Uploads(4, [2, 5], [1, 3], [2, 5], torch.tensor([[0.0, 2.0, 8.0], [4.0, 4.0, 0.0]]), lost=[9]))
    assert server.shared.tolist() == [3.0, 3.0, 2.0]  # 1/4 and 3/4, but 1/2 each under ``uniform``
    assert kept(server) == {
        SHARED: [3.0, 3.0, 2.0],
        "pool.2": [8.0],
        "pool.5": [0.0],
        "before.2": [1.0],
        "before.5": [2.0],
        "received.9": [7.0],  # what client 9 looked from as it trained
    }


def test_without_an_upload_the_server_stays_as_it_was() -> None:
    """And nothing travels; who is lost has read what it had sent before, or what the server had sent."""
    server = new_server(ServerRules([lambda rows, uploads, state: 1 / 0]))
    before = server.world.ledger.state()
    server.round(Uploads(4, [], [], [], torch.empty(0, 3), lost=[2, 9]))
    assert kept(server) == {SHARED: [7.0] * 3, "pool.2": [1.0], "pool.5": [2.0], "before.2": [1.0], "received.9": [7.0]}
    server.round(Uploads(5, [], [], [], torch.empty(0, 3)))
    assert kept(server) == {SHARED: [7.0] * 3, "pool.2": [1.0], "pool.5": [2.0]}
    assert server.world.ledger.state() == before


def test_a_state_that_is_renewed_in_any_round_is() -> None:
    def decay(state: ServerState, mean: Tensor, uploads: Uploads) -> ServerState:
        return {SHARED: 0.5 * state[SHARED] + mean}

    server = new_server(ServerRules(update=decay, in_any_round=True))
    server.round(Uploads(4, [], [], [], torch.empty(0, 3), lost=[2]))
    assert server.shared.tolist() == [3.5] * 3
