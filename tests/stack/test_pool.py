"""The server's pool: which other clients' tensors a client is sent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfedmma.stack.layout import Layout
from pfedmma.stack.pool import Pool
from pfedmma.stack.rules import MEAN, POOL

SIZE = 3


def plain(pool: Pool, client: int, current: Tensor, limit: int) -> list[int]:
    """The ids of the nearest others, by a loop; ``sorted`` keeps the order of ids among equally near ones."""
    own = pool.rows.get(client, current)
    others = [i for i in sorted(pool.rows) if i != client]
    return sorted(others, key=lambda i: float(sum((a - b) ** 2 for a, b in zip(own.tolist(), pool.rows[i].tolist(), strict=True))))[:limit]


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Rows of small whole numbers, so that equal distances are common and exact; entered in any order."""
    pool = Pool()
    for i in draw(st.lists(st.integers(0, 9), unique=True, max_size=8)):
        pool.rows[i] = torch.tensor(draw(st.lists(st.integers(-2, 2), min_size=SIZE, max_size=SIZE)), dtype=torch.float32)
    return pool


@settings(max_examples=200, deadline=None)
@given(pools(), st.lists(st.integers(0, 11), unique=True, min_size=1, max_size=5), st.integers(0, 9))
def test_nearest_is_a_plain_search(pool: Pool, ids: list[int], limit: int) -> None:
    current = torch.ones(SIZE)
    wanted = [plain(pool, i, current, limit) for i in ids]
    assert [pool.readable(i, limit) for i in ids] == [len(found) for found in wanted]
    result = pool.nearest(ids, current, limit)
    if not any(wanted):
        assert result is None
        return
    assert result is not None
    tensors, present = result
    assert tensors.shape == (*present.shape, SIZE)
    assert present.tolist() == [[column < len(found) for column in range(max(map(len, wanted)))] for found in wanted]
    for row, found in enumerate(wanted):
        assert torch.equal(tensors[row, : len(found)], torch.stack([pool.rows[i] for i in found]) if found else tensors[row, :0])


def test_nearest_by_hand() -> None:
    """Client 5 has sent nothing and looks from the current mean; 1 and 7 are equally near to 3; a client is not its own neighbour."""
    pool = Pool()
    pool.rows = {7: torch.tensor([2.0]), 3: torch.tensor([1.0]), 1: torch.tensor([0.0]), 4: torch.tensor([9.0])}
    result = pool.nearest([3, 5, 4], torch.tensor([8.0]), limit=9)
    assert result is not None
    assert result[0][:, :3, 0].tolist() == [[0.0, 2.0, 9.0], [9.0, 2.0, 1.0], [2.0, 1.0, 0.0]]
    assert result[1].tolist() == [[True, True, True, False], [True] * 4, [True, True, True, False]]


def tensors_of(found: tuple[Tensor, Tensor] | None) -> list[list[float]]:
    """What each client reads, of one number a row."""
    assert found is not None
    return [[float(x) for x, here in zip(row[:, 0], there, strict=True) if here] for row, there in zip(*found, strict=True)]


def test_what_was_read_at_the_start_of_the_round_by_hand() -> None:
    """Clients 0 and 1 had sent 1 and 5 when 0 and 2 took part; the server had sent 4. Then 0 sends 6, and 2, for the first time, 9."""
    pool = Pool()
    pool.rows = {0: torch.tensor([1.0]), 1: torch.tensor([5.0]), 3: torch.tensor([2.0])}
    at_start = pool.nearest([0, 2], torch.tensor([4.0]), 9)
    assert tensors_of(at_start) == [[2.0, 5.0], [5.0, 2.0, 1.0]]
    pool.keep([0, 2], torch.tensor([[6.0], [9.0]]), torch.tensor([4.0]))
    now = torch.tensor([7.0])  # the server's
    # Who took part reads what it read, though 0 has sent 6 since, and 2 was there for nobody; all others read the newest.
    assert tensors_of(pool.nearest([0, 2, 1, 5], now, 9, as_read=True)) == [
        [2.0, 5.0],
        [5.0, 2.0, 1.0],
        [6.0, 2.0, 9.0],
        [6.0, 5.0, 9.0, 2.0],
    ]
    assert tensors_of(pool.nearest([0, 2], now, 9)) == [[5.0, 9.0, 2.0], [6.0, 5.0, 2.0]]


def test_whose_upload_was_lost_read_the_same_by_hand() -> None:
    """As above, but nothing has come of 0, nor of 4, who had never sent: they trained with what there was."""
    pool = Pool()
    pool.rows = {0: torch.tensor([1.0]), 1: torch.tensor([5.0]), 3: torch.tensor([2.0])}
    pool.keep([2], torch.tensor([[9.0]]), torch.tensor([4.0]), lost=[0, 4])
    now = torch.tensor([7.0])
    for kept in (pool, Pool.from_state(pool.state_dict())):
        assert {i: float(row) for i, row in kept.rows.items()} == {0: 1.0, 1: 5.0, 2: 9.0, 3: 2.0}
        assert tensors_of(kept.nearest([0, 4, 1], now, 9, as_read=True)) == [[2.0, 5.0], [5.0, 2.0, 1.0], [2.0, 1.0, 9.0]]
    pool.keep([], torch.empty(0, 1), now)  # a round of nobody: all read the newest
    assert tensors_of(pool.nearest([0], now, 9, as_read=True)) == tensors_of(pool.nearest([0], now, 9)) == [[2.0, 5.0, 9.0]]


@settings(max_examples=100, deadline=None)
@given(pools(), st.lists(st.integers(0, 11), unique=True, min_size=1, max_size=5), st.integers(0, 5), st.integers(0, 9))
def test_what_was_read_is_read_again(pool: Pool, cohort: list[int], lost: int, limit: int) -> None:
    """Whatever is sent in the round, and by whom; also from a state that was kept and read back."""
    received = torch.ones(SIZE)
    wanted = {i: pool.nearest([i], received, limit) for i in cohort}
    sent = torch.tensor(cohort[lost:], dtype=torch.float32)[:, None].expand(-1, SIZE)
    rest = [i for i in range(12) if i not in cohort]
    pool.keep(cohort[lost:], sent, received, cohort[:lost])
    for kept in (pool, Pool.from_state(pool.state_dict())):
        for client in range(12):
            before = wanted[client] if client in cohort else kept.nearest([client], torch.zeros(SIZE), limit)
            again = kept.nearest([client], torch.zeros(SIZE), limit, as_read=True)
            assert (before is None) == (again is None)
            assert before is None or again is None or all(torch.equal(one, other) for one, other in zip(before, again, strict=True))
    together = pool.nearest([*cohort, *rest], torch.zeros(SIZE), limit, as_read=True)
    counts = [0] * 12 if together is None else together[1].sum(dim=1).tolist()
    assert counts[: len(cohort)] == [0 if found is None else found[1].shape[1] for found in wanted.values()]


@pytest.mark.parametrize("limit", [0, 3])
def test_nothing_to_read(limit: int) -> None:
    pool = Pool()
    assert pool.nearest([0], torch.zeros(1), limit) is None
    pool.rows[0] = torch.ones(1)
    assert pool.nearest([0], torch.zeros(1), limit) is None  # only its own
    assert (pool.nearest([1], torch.zeros(1), limit) is None) == (limit == 0)


def test_named_tensors_of_the_rule_pool_alone_are_handed_out() -> None:
    layout = Layout({"mean": (2,), "a": (1, 2), "private": (3,), "b": (2,)}, {"mean": MEAN, "b": POOL, "a": POOL})
    pool, shared = Pool(), torch.zeros(layout.exchanged_size)
    assert pool.others(layout, [0], shared, 5) is None
    pool.rows = {i: torch.arange(4.0) + 10 * i for i in range(3)}
    others = pool.others(layout, [2, 0], shared, 1)
    assert others is not None
    assert others.present.tolist() == [[True], [True]]
    both = {name: tensor.tolist() for name, tensor in others.tensors.items()}  # client 1's, twice
    assert both == {"a": [[[[10.0, 11.0]]]] * 2, "b": [[[12.0, 13.0]]] * 2}


def test_who_has_sent_nothing_looks_from_the_pooled_part_of_the_servers() -> None:
    layout = Layout({"mean": (2,), "a": (1,)}, {"mean": MEAN, "a": POOL})
    pool = Pool()
    pool.rows = {1: torch.tensor([0.0]), 2: torch.tensor([5.0])}
    for own, nearest in ((1.0, 0.0), (4.0, 5.0)):
        others = pool.others(layout, [7], torch.tensor([9.0, 9.0, own]), 1)
        assert others is not None and others.tensors["a"].tolist() == [[[nearest]]]


def test_a_method_without_the_rule_reads_nothing() -> None:
    layout = Layout({"a": (1,)}, {"a": MEAN})
    pool = Pool()
    pool.rows = {1: torch.tensor([0.0])}
    assert pool.others(layout, [0], torch.zeros(1), 5) is None
