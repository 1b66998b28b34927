"""The server by hand: how uploads become its next state, what travels for it, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from pfedmma.comm.ledger import EXCHANGE
from pfedmma.comm.world import World
from pfedmma.server.rules import SHARED, ServerRules, ServerState, Uploads
from pfedmma.server.server import Server
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import MEAN, POOL, UNIFORM

CPU = torch.device("cpu")
SMALL, LARGE = 2, 5  # ids of two clients of 1 and 3 images
# One tensor a rule, and one that never travels: columns [a, a, b, c, c, own].
RULES = Layout({"a": (2,), "b": (1,), "c": (2,), "own": (1,)}, {"a": MEAN, "b": UNIFORM, "c": POOL})
ROWS = torch.tensor([[0.0, 4.0, 1.0, 8.0, 0.0], [4.0, 0.0, 3.0, 0.0, 4.0]])
PLAIN = Layout({"a": (2,)}, {"a": MEAN})


class Rank(World):
    """A rank beside others, which send ``theirs`` in sum; ``sent``: what this one sends."""

    def __init__(self, theirs: Tensor | float = 0.0) -> None:
        super().__init__(0, 1, CPU)
        self.theirs, self.sent = theirs, list[tuple[str, Tensor]]()

    def sum(self, flat: Tensor, purpose: str) -> Tensor:
        self.sent.append((purpose, flat.clone()))
        return flat + self.theirs


def new_server(layout: Layout, world: World | None = None, rules: ServerRules | None = None, **state: Tensor) -> Server:
    """A server whose clients begin with 1s; ``state``: what it keeps besides."""
    return Server(layout, {SHARED: torch.ones(layout.exchanged_size), **state}, world or Rank(), rules or ServerRules())


def uploads(rows: Tensor, hosted: list[int] | None = None) -> Uploads:
    """Of round 4, by both clients, who are all on this rank unless ``hosted`` says otherwise."""
    return Uploads(4, [SMALL, LARGE], [1, 3], [SMALL, LARGE] if hosted is None else hosted, rows)


def pool_of(server: Server) -> dict[int, list[float]]:
    return {client: row.tolist() for client, row in server.pool.rows.items()}


# FedAvg ----------------------------------------------------------------------------------------------------------------------------------


def test_each_rule_by_hand() -> None:
    """Weights 1/4 and 3/4, but 1/2 each under ``uniform``; what is pooled is averaged, and kept of each."""
    server = new_server(RULES)
    server.round(uploads(ROWS))
    assert server.shared.tolist() == [3.0, 1.0, 2.0, 2.0, 3.0] and server.shared.dtype == torch.float32
    assert pool_of(server) == {SMALL: [8.0, 0.0], LARGE: [0.0, 4.0]}


def test_what_is_pooled_stays_until_its_client_takes_part_again() -> None:
    server = new_server(RULES)
    server.round(uploads(ROWS))
    server.round(Uploads(5, [LARGE, 7], [3, 1], [LARGE, 7], 2.0 * ROWS))
    assert pool_of(server) == {SMALL: [8.0, 0.0], LARGE: [16.0, 0.0], 7: [0.0, 8.0]}


@pytest.mark.parametrize(("here", "there"), [([0, 1], []), ([0], [1]), ([1], [0]), ([], [0, 1])], ids=str)
def test_ranks_end_alike_wherever_the_participants_are(here: list[int], there: list[int]) -> None:
    """Also a rank without any: it enters with zeros. One collective a round, of the mean and each participant's pooled part."""
    ids = [SMALL, LARGE]
    ranks = [Rank(), Rank()]
    for own, rank in zip((here, there), ranks, strict=True):
        new_server(RULES, rank).round(uploads(ROWS[own], [ids[row] for row in own]))
    (purpose, first), (_, second) = ranks[0].sent[0], ranks[1].sent[0]
    assert purpose == EXCHANGE and len(first) == len(second) == 5 + 2 * 2
    assert first.any() == bool(here) and second.any() == bool(there)
    for own, theirs in ((here, second), (there, first)):
        rank = Rank(theirs)
        server = new_server(RULES, rank)
        server.round(uploads(ROWS[own], [ids[row] for row in own]))
        assert len(rank.sent) == 1
        assert server.shared.tolist() == [3.0, 1.0, 2.0, 2.0, 3.0]
        assert pool_of(server) == {SMALL: [8.0, 0.0], LARGE: [0.0, 4.0]}


def test_where_nothing_is_exchanged_there_is_no_collective() -> None:
    world, layout = World(0, 1, CPU), Layout({"own": (3,)}, {})
    before = world.ledger.state()
    server = new_server(layout, world, ServerRules([lambda rows, uploads, state: 1 / 0]))
    server.round(uploads(torch.empty(2, 0)))
    assert world.ledger.state() == before
    assert server.shared.shape == (0,) and server.others([SMALL]) is None and server.read_parameters([SMALL, LARGE]) == 0


@pytest.mark.parametrize(("wire", "dtype", "mean"), [("fp32", torch.float32, 1.0 + 2**-9), ("bf16", torch.bfloat16, 1.0)])
def test_the_wire_has_its_dtype(wire: str, dtype: torch.dtype, mean: float) -> None:
    """bf16 has 8 bits: 1 + 2^-9 travels as 1. The state stays in fp32."""
    rank = Rank()
    server = new_server(RULES, rank, ServerRules(wire=wire))
    server.round(uploads(torch.full((2, 5), 1.0 + 2**-9)))
    assert [sent.dtype for _, sent in rank.sent] == [dtype]
    assert server.shared.dtype == torch.float32 and server.shared.tolist() == [mean] * 5
    assert pool_of(server) == {SMALL: [mean] * 2, LARGE: [mean] * 2} and server.pool.rows[SMALL].dtype == torch.float32


def test_what_clients_read_of_others_by_hand() -> None:
    server = new_server(RULES, rules=ServerRules(reads=1))
    assert server.others([SMALL]) is None and server.read_parameters([SMALL, LARGE, 7]) == 0
    server.round(uploads(ROWS))
    others = server.others([SMALL, LARGE])
    assert others is not None and {name: tensor.tolist() for name, tensor in others.tensors.items()} == {"c": [[[0.0, 4.0]], [[8.0, 0.0]]]}
    assert server.read_parameters([SMALL, LARGE, 7]) == 2 + 2 + 2  # one of two numbers each
    server.rules = ServerRules(reads=9)
    assert server.read_parameters([SMALL, LARGE, 7]) == 2 + 2 + 4  # client 7 has sent nothing itself


def test_other_weights_by_hand() -> None:
    """The larger client's alone, but of what is averaged plainly the sum; asked once a rule."""
    asked = []

    def weights(uploads: Uploads, rule: str) -> list[float]:
        asked.append((rule, uploads.round, uploads.hosted))
        return [1.0, 1.0] if rule == UNIFORM else [0.0, 1.0]

    server = new_server(RULES, rules=ServerRules(weights=weights))
    server.round(uploads(ROWS))
    assert server.shared.tolist() == [4.0, 0.0, 4.0, 0.0, 4.0]
    assert pool_of(server) == {SMALL: [8.0, 0.0], LARGE: [0.0, 4.0]}  # what is kept of each is what it sent
    assert asked == [(rule, 4, [SMALL, LARGE]) for rule in (MEAN, UNIFORM, POOL)]


# Transforms of uploads -------------------------------------------------------------------------------------------------------------------


def change(rows: Tensor, uploads: Uploads, state: ServerState) -> Tensor:
    return rows - state[SHARED]


def clip(rows: Tensor, uploads: Uploads, state: ServerState) -> Tensor:
    """Each row to a norm of at most 2.5."""
    return rows * (2.5 / rows.norm(dim=1, keepdim=True)).clamp(max=1.0)


def back(rows: Tensor, uploads: Uploads, state: ServerState) -> Tensor:
    return rows + state[SHARED]


def test_uploads_are_transformed_in_order_before_they_are_summed() -> None:
    """From [1, 1] the clients went [3, 4], which is clipped to [1.5, 2], and [0, 1]; weighted 1 to 3."""
    rows = torch.tensor([[4.0, 5.0], [1.0, 2.0]])
    server = new_server(PLAIN, rules=ServerRules([change, clip, back]))
    server.round(uploads(rows))
    assert server.shared.tolist() == pytest.approx([1 + 1.5 / 4, 1 + (2 + 3) / 4])
    assert rows.tolist() == [[4.0, 5.0], [1.0, 2.0]]
    other = new_server(PLAIN, rules=ServerRules([clip, change, back]))
    other.round(uploads(rows))
    assert other.shared.tolist() != pytest.approx(server.shared.tolist())


def test_a_transform_knows_the_round_and_whose_rows_it_has() -> None:
    seen = []

    def mask(rows: Tensor, uploads: Uploads, state: ServerState) -> Tensor:
        seen.append((uploads.round, uploads.clients, uploads.hosted, state["keep"].tolist()))
        return rows * state["keep"]

    server = new_server(PLAIN, rules=ServerRules([mask]), keep=torch.tensor([0.0, 1.0]))
    server.round(uploads(torch.tensor([[4.0, 8.0]]), hosted=[LARGE]))
    assert seen == [(4, [SMALL, LARGE], [LARGE], [0.0, 1.0])]
    assert server.shared.tolist() == [0.0, 6.0]


# A server with a state of its own --------------------------------------------------------------------------------------------------------


def momentum(state: ServerState, mean: Tensor, uploads: Uploads) -> ServerState:
    moment = 0.5 * state["moment"] + (mean - state[SHARED])
    return {SHARED: state[SHARED] + moment, "moment": moment}


def with_momentum(layout: Layout = PLAIN) -> Server:
    return new_server(layout, rules=ServerRules(update=momentum), moment=torch.zeros(layout.exchanged_size))


def test_momentum_by_hand() -> None:
    """From 1: the mean is 5, a way of 4; then 7, a way of 2 and half of the 4 before."""
    server = with_momentum()
    server.round(uploads(torch.tensor([[2.0, 1.0], [6.0, 1.0]])))
    assert server.state["moment"].tolist() == [4.0, 0.0] and server.shared.tolist() == [5.0, 1.0]
    server.round(uploads(torch.tensor([[7.0, 1.0], [7.0, 1.0]])))
    assert server.state["moment"].tolist() == [4.0, 0.0] and server.shared.tolist() == [9.0, 1.0]


def test_what_stood_in_the_pool_before_the_round() -> None:
    """Of its participants alone: what they had sent, or what the server had sent to who had not sent anything."""
    server = new_server(RULES)
    server.round(uploads(ROWS))
    assert not server.pool.before
    assert {client: row.tolist() for client, row in server.pool.received.items()} == {SMALL: [1.0, 1.0], LARGE: [1.0, 1.0]}
    assert server.shared[3:].tolist() == [2.0, 3.0]
    server.round(Uploads(5, [LARGE, 7], [3, 1], [LARGE, 7], 2.0 * ROWS))
    assert {client: row.tolist() for client, row in server.pool.before.items()} == {LARGE: [0.0, 4.0]}
    assert {client: row.tolist() for client, row in server.pool.received.items()} == {7: [2.0, 3.0]}


def test_a_server_goes_on_from_its_state_dict() -> None:
    server, later = with_momentum(RULES), with_momentum(RULES)
    server.round(uploads(ROWS))
    kept = {name: tensor.clone() for name, tensor in server.state_dict().items()}
    assert kept.keys() == {SHARED, "moment", *(f"{part}.{client}" for part in ("pool", "received") for client in (SMALL, LARGE))}
    later.load_state_dict(kept)
    for one in (server, later):
        one.round(uploads(ROWS.flip(0)))
    assert all(torch.equal(tensor, server.state_dict()[name]) for name, tensor in later.state_dict().items())
    assert later.state_dict().keys() == server.state_dict().keys()
    assert not torch.equal(kept["moment"], server.state["moment"])


GOOD: Mapping[str, Tensor] = {SHARED: torch.zeros(5), "moment": torch.zeros(5), f"pool.{SMALL}": torch.zeros(2)}


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        (SHARED, None),
        ("moment", None),
        ("step", torch.zeros(1)),
        (SHARED, torch.zeros(4)),
        ("moment", torch.zeros(5, 1)),
        (f"pool.{SMALL}", torch.zeros(3)),
        ("pool.x", torch.zeros(2)),
        ("pool.-1", torch.zeros(2)),
        (f"before.{SMALL}", torch.zeros(3)),
        ("received.01", torch.zeros(2)),
    ],
    ids=["no shared", "no moment", "a step", "short", "two axes", "long", "no client's", "below 0", "long before", "two digits for one"],
)
def test_other_state_is_refused_by_name(name: str, tensor: Tensor | None) -> None:
    server = with_momentum(RULES)
    server.load_state_dict(GOOD)
    wrong = {**GOOD, name: torch.ones(1) if tensor is None else tensor}
    if tensor is None:
        del wrong[name]
    with pytest.raises(ValueError, match=f"'{name}' is (missing, one too many, or of another size|of no client)$") as caught:
        server.load_state_dict(wrong)
    assert "\n" not in str(caught.value)
    assert not any(tensor.any() for tensor in server.state_dict().values())  # as it was


def test_a_server_without_a_pool_takes_none() -> None:
    with pytest.raises(ValueError, match=r"'pool\.2' is missing, one too many"):
        new_server(PLAIN).load_state_dict({SHARED: torch.zeros(2), "pool.2": torch.zeros(2)})
