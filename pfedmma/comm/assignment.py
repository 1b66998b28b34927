"""Which rank trains, tests and keeps which client: who computes a result, and never what it is.

Every client has a home: the rank that reads its state from a checkpoint and writes it there. Homes are dealt once, by the local steps that
clients take in a round: the longest first, each to the rank with the least so far. Where all clients take part in every round they train
at home. Of a smaller cohort each node deals its own clients to its ranks in each round, in the same way. The state of a client stays on its
node: ranks of one node share it in memory (`pfedmma.stack.shared_rows`), and none of it is in a collective.

All of this follows from the partition and the nodes, which every rank knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

from pfedmma.comm.node import Nodes
from pfedmma.comm.world import World

_NOWHERE: Mapping[int, int] = {}


def longest_first(work: Mapping[int, int], ranks: Sequence[int], home: Mapping[int, int] = _NOWHERE) -> dict[int, int]:
    """A rank for each client: the one with the most ``work`` first (then by id), each to the rank with the least so far.

    Of ranks that have equally little a client takes its ``home`` if that is among them, else the first.
    The longest rank has at most 4/3 of the work that it has in the best division (Graham 1969, LPT).
    """
    load = dict.fromkeys(ranks, 0)
    found: dict[int, int] = {}
    for client in sorted(work, key=lambda i: (-work[i], i)):
        least = min(load.values())
        rank = home.get(client, -1)
        if load.get(rank) != least:
            rank = next(other for other in ranks if load[other] == least)
        load[rank] += work[client]
        found[client] = rank
    return found


@dataclass(frozen=True)
class Assignment:
    """``work``: local steps of each client in a round. ``home``: its rank."""

    nodes: Nodes
    work: Mapping[int, int]
    home: Mapping[int, int]

    @classmethod
    def from_work(cls, nodes: Nodes, work: Mapping[int, int], new: Collection[int] = ()) -> Assignment:
        """Homes of all clients: those that take part in rounds are dealt first, then, by themselves, the ``new`` ones."""
        # Nodes take turns, so that what is equal is spread over them.
        ranks = [rank for turn in zip_longest(*nodes.ranks) for rank in turn if rank is not None]
        others = {i: steps for i, steps in work.items() if i not in new}
        return cls(nodes, work, longest_first(others, ranks) | longest_first({i: work[i] for i in new}, ranks))

    @property
    def world(self) -> World:
        return self.nodes.world

    def keeps(self, client: int) -> bool:
        """Whether this rank is the client's home."""
        return self.home[client] == self.world.rank

    @cached_property
    def near(self) -> list[int]:
        """The clients of this rank's node, ascending."""
        return self._of_node(sorted(self.home))

    def training(self, cohort: Sequence[int]) -> list[int]:
        """Those of a round's participants that train on this rank, in the order of ``cohort``."""
        rank_of = longest_first({i: self.work[i] for i in self._of_node(cohort)}, self.nodes.own, self.home)
        return [i for i in cohort if rank_of.get(i) == self.world.rank]

    def testing(self, clients: Sequence[int]) -> list[int]:
        """Those of the clients that are tested on this rank: a test costs about the same for each, so a node's ranks take them in turn."""
        own = self.nodes.own
        return self._of_node(clients)[own.index(self.world.rank) :: len(own)]

    def starting(self, clients: Sequence[int]) -> list[int]:
        """Those of the clients, none of whom has a state yet, that this rank takes: any rank can."""
        ranks = sorted(rank for node in self.nodes.ranks for rank in node)
        rank_of = longest_first({i: self.work[i] for i in clients}, ranks, self.home)
        return [i for i in clients if rank_of[i] == self.world.rank]

    def _of_node(self, clients: Sequence[int]) -> list[int]:
        own = frozenset(self.nodes.own)
        return [i for i in clients if self.home[i] in own]
