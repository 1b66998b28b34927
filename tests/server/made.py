"""Servers by hand: a layout of three numbers, uploads of given rows, and ranks whose collectives are summed in this process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfedmma.comm.world import World
from pfedmma.server.rules import SHARED, ServerRules, Uploads
from pfedmma.server.server import Server
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import MEAN

CPU = torch.device("cpu")
LAYOUT = Layout({"a": (3,), "own": (2,)}, {"a": MEAN})
SIZE = LAYOUT.exchanged_size


class Rank(World):
    """One of several ranks, which enter one after the other: ``theirs`` are what the others send, ``sent`` what this one does."""

    def __init__(self, rank: int = 0, theirs: Sequence[Tensor] = ()) -> None:
        super().__init__(rank, 1, CPU)
        self.theirs, self.sent = list(theirs), list[Tensor]()

    def sum(self, flat: Tensor, purpose: str) -> Tensor:
        self.sent.append(flat.clone())
        total = super().sum(flat, purpose)
        for other in self.theirs:
            total = total + other
        return total


def server_of(rules: ServerRules, world: World | None = None, start: Tensor | None = None) -> Server:
    """A server whose clients begin with ``start`` [3], or with 1s."""
    return Server(LAYOUT, {SHARED: torch.ones(SIZE) if start is None else start}, world or Rank(), rules)


def uploads_of(rows: Tensor, round_: int = 1, lost: Sequence[int] = (), hosted: Sequence[int] | None = None) -> Uploads:
    """Of clients 0, 1, ... with as many images each, all on this rank; or, of as many as there are rows, of those that are ``hosted``."""
    ids = [i for i in range(len(rows) + len(lost)) if i not in lost]
    here = ids if hosted is None else list(hosted)
    return Uploads(round_, ids, [1] * len(ids), here, rows[[ids.index(i) for i in here]], lost)


def shared_over(rules: ServerRules, rows: Tensor, parts: Sequence[Sequence[int]], lost: Sequence[int] = ()) -> list[Tensor]:
    """What each rank ends with, where ``parts`` says which clients it hosts."""
    first = [Rank(rank) for rank in range(len(parts))]
    for rank, hosted in zip(first, parts, strict=True):
        server_of(rules, rank).round(uploads_of(rows, lost=lost, hosted=hosted))
    ends = []
    for rank, hosted in enumerate(parts):
        world = Rank(rank, [other.sent[0] for other in first if other.rank != rank])
        server = server_of(rules, world)
        server.round(uploads_of(rows, lost=lost, hosted=hosted))
        ends.append(server.shared)
    return ends
