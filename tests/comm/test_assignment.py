"""Who computes what: by hand, and for any clients and nodes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from pfedmma.comm.assignment import Assignment, longest_first
from pfedmma.comm.node import Nodes
from pfedmma.comm.world import World

Ranks = tuple[tuple[int, ...], ...]
CPU = torch.device("cpu")


def seen_by_all(work: dict[int, int], nodes: Ranks, new: tuple[int, ...] = ()) -> list[Assignment]:
    """What each rank works out for itself."""
    size = sum(map(len, nodes))
    return [Assignment.from_work(Nodes(World(rank, size, CPU), nodes), work, new) for rank in range(size)]


# By hand ---------------------------------------------------------------------------------------------------------------------------------


def test_the_longest_goes_first_to_the_rank_with_the_least() -> None:
    # 7 to rank 0, 6 to rank 1, 5 to rank 1 (11 together), 4 to rank 0 (11 as well), 2 to the first of these equals.
    work = {3: 5, 0: 7, 1: 4, 2: 6, 4: 2}
    assert longest_first(work, [0, 1]) == {0: 0, 2: 1, 3: 1, 1: 0, 4: 0}
    # Three ranks: 7, 6, 5; then 4 to the one with 5, 2 to the one with 6.
    assert longest_first(work, [0, 1, 2]) == {0: 0, 2: 1, 3: 2, 1: 2, 4: 1}


def test_equal_clients_are_dealt_in_turn_and_stay_at_home_where_that_costs_nothing() -> None:
    equal = dict.fromkeys([5, 2, 8], 3)
    assert longest_first(equal, [0, 1]) == {2: 0, 5: 1, 8: 0}
    assert longest_first(equal, [0, 1], {2: 1, 5: 0, 8: 1}) == {2: 1, 5: 0, 8: 1}
    assert longest_first(equal, [0, 1], {2: 0, 5: 0, 8: 0}) == {2: 0, 5: 1, 8: 0}, "a home does not make the longest rank longer"
    assert longest_first({}, [0, 1]) == {}


def test_equal_clients_are_spread_over_nodes() -> None:
    """Six ranks, three clients: one a node, and not three on the first node."""
    everywhere = seen_by_all(dict.fromkeys(range(3), 1), ((0, 1, 2), (3, 4), (5,)))
    assert everywhere[0].home == {0: 0, 1: 3, 2: 5}
    assert [one.near for one in everywhere] == [[0]] * 3 + [[1]] * 2 + [[2]]


def test_a_cohort_is_dealt_anew_within_its_nodes() -> None:
    everywhere = seen_by_all({0: 8, 1: 8, 2: 3, 3: 3, 4: 2, 5: 2}, ((0, 1),))
    assert everywhere[0].home == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0, 5: 1}
    # All three are at home on rank 0; the longest stays there.
    assert [one.training([0, 2, 4]) for one in everywhere] == [[0], [2, 4]]
    apart = seen_by_all({0: 8, 1: 8, 2: 3, 3: 3, 4: 2, 5: 2}, ((0,), (1,)))
    assert apart[0].home == everywhere[0].home
    assert [one.training([0, 2, 4]) for one in apart] == [[0, 2, 4], []], "what is private does not leave its node"


def test_a_test_costs_the_same_for_each_client() -> None:
    """Whoever has the one large client tests as many as the other rank."""
    everywhere = seen_by_all({0: 100, **dict.fromkeys(range(1, 6), 1)}, ((0, 1),))
    assert [one.training(range(6)) for one in everywhere] == [[0], [1, 2, 3, 4, 5]]
    assert [one.testing(range(6)) for one in everywhere] == [[0, 2, 4], [1, 3, 5]]
    assert [one.testing([5]) for one in everywhere] == [[5], []]


def test_new_clients_are_dealt_by_themselves() -> None:
    everywhere = seen_by_all({0: 9, 1: 1, 2: 5, 3: 4, 4: 4}, ((0,), (1,)), new=(2, 3, 4))
    assert everywhere[0].home == {0: 0, 1: 1, 2: 0, 3: 1, 4: 1}
    assert [one.starting([2, 3, 4]) for one in everywhere] == [[2], [3, 4]]
    assert [one.starting([3, 4]) for one in everywhere] == [[4], [3]], "they have no state yet, so a home on another node binds nobody"


# In general ------------------------------------------------------------------------------------------------------------------------------

NODES = st.sampled_from([((0,),), ((0, 1),), ((0, 1, 2, 3),), ((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0,), (1, 2, 3)), ((0,), (1,), (2,))])
WORK = st.lists(st.integers(1, 30), min_size=1, max_size=12).map(lambda steps: dict(enumerate(steps)))


@trials(max_examples=200, deadline=None)
@given(WORK, NODES, st.data())
def test_every_client_has_one_rank(work: dict[int, int], nodes: Ranks, data: st.DataObject) -> None:
    everywhere = seen_by_all(work, nodes)
    clients = sorted(work)
    cohort = sorted(data.draw(st.sets(st.sampled_from(clients))))
    assert all(one.home == everywhere[0].home for one in everywhere)
    for part in ([one.training(cohort) for one in everywhere], [one.testing(cohort) for one in everywhere]):
        assert sorted(itertools.chain(*part)) == cohort
        for rank, own in enumerate(part):  # on a node that has its state
            assert set(own) <= set(everywhere[rank].near)
    assert sorted(itertools.chain(*(one.starting(cohort) for one in everywhere))) == cohort
    assert [sum(one.keeps(i) for one in everywhere) for i in clients] == [1] * len(clients)


@trials(max_examples=200, deadline=None)
@given(WORK, NODES)
def test_whoever_always_takes_part_trains_at_home(work: dict[int, int], nodes: Ranks) -> None:
    """So with full participation a client stays on one rank for the whole run."""
    for rank, one in enumerate(seen_by_all(work, nodes)):
        assert one.training(sorted(work)) == [i for i in sorted(work) if one.home[i] == rank]


@trials(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3))
def test_the_longest_rank_is_near_the_best_there_is(steps: list[int], ranks: int) -> None:
    """At most 4/3 - 1/(3 ranks) of it (Graham 1969); the best is found by trying all."""
    found = longest_first(dict(enumerate(steps)), range(ranks))
    longest = max(sum(steps[i] for i, rank in found.items() if rank == own) for own in range(ranks))
    tried = itertools.product(range(ranks), repeat=len(steps))
    best = min(max(sum(n for n, rank in zip(steps, way, strict=True) if rank == own) for own in range(ranks)) for way in tried)
    assert longest <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_rank_has_everybody(ranks: int) -> None:
    (one, *_) = seen_by_all({0: 3, 1: 5}, tuple((rank,) for rank in range(ranks)))
    assert (one.training([0, 1]) == one.testing([0, 1]) == one.near == [0, 1]) == (ranks == 1)
