"""How a server works, as values: what is done to uploads, how they are summed, and what becomes of the sum.

Shape legend: C participants that train on this rank, N of the whole round, X exchanged parameters of one client, Y of them pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pfedmma.comm.ledger import EXCHANGE
from pfedmma.comm.world import WIRE_DTYPES, World
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import POOL, UNIFORM

SHARED = "shared"  # the entry of the server's state that clients receive [X]


@dataclass(frozen=True)
class Uploads:
    """What the participants of a round send.

    ``clients``: ids of all participants whose upload counts, ascending, and ``samples``: their numbers of training images, both known on
    every rank. ``hosted``: the ids of those that train on this rank; ``rows`` [C, X]: their exchanged tensors after local training.
    ``lost``: ids of participants whose upload did not come in time. ``controls`` [C, X]: the changes of the hosted ones' control variates,
    where they send such beside ``rows``.
    """

    round: int
    clients: Sequence[int]
    samples: Sequence[int]
    hosted: Sequence[int]
    rows: Tensor
    lost: Sequence[int] = ()
    controls: Tensor | None = None


class Link(NamedTuple):
    """Between this rank and the others: what is laid out how, through which ranks and in which dtype it travels."""

    layout: Layout
    world: World
    wire: str

    @property
    def pooled(self) -> slice:
        """Which exchanged parameters are pooled."""
        return self.layout.columns.get(POOL, slice(0, 0))

    def sum(self, flat: Tensor) -> Tensor:
        """``flat`` [n] summed over all ranks as it travels, in fp32. All ranks enter."""
        return self.world.sum(flat.to(WIRE_DTYPES[self.wire]), EXCHANGE).float()


class Sum(NamedTuple):
    """The mean of the uploads [X], and what each participant pools [N, Y]; identical on all ranks."""

    mean: Tensor
    pooled: Tensor


ServerState = dict[str, Tensor]
# (the round's uploads, a rule of `pfedmma.stack.rules`) -> the weight of each hosted participant in the sum over all [C].
Weights = Callable[[Uploads, str], Sequence[float]]
# (what the hosted participants send [C, X], the round's uploads, the server's state) -> what they send instead [C, X].
Transform = Callable[[Tensor, Uploads, ServerState], Tensor]
# (the round's uploads, X) -> what the server adds to the weighted sum [X]; drawn on rank 0 alone, so that all ranks end alike.
Noise = Callable[[Uploads, int], Tensor]
# (what the hosted participants send [C, X], the round's uploads, the server's state, rules, link) -> the same on all ranks, who all enter.
Aggregate = Callable[[Tensor, Uploads, ServerState, "ServerRules", Link], Sum]
# (the server's state, the mean of the uploads [X], the round's uploads) -> the next state, identical on all ranks.
Update = Callable[[ServerState, Tensor, Uploads], ServerState]


def by_rule(uploads: Uploads, rule: str) -> list[float]:
    """n_i / n, or 1 / participants under rule ``uniform``. They follow from the partition, so no rank has to be told."""
    sizes, total = dict(zip(uploads.clients, uploads.samples, strict=True)), sum(uploads.samples)
    return [1.0 / len(uploads.clients) if rule == UNIFORM else sizes[i] / total for i in uploads.hosted]


def weighted_mean(rows: Tensor, uploads: Uploads, state: ServerState, rules: ServerRules, link: Link) -> Sum:
    """The weighted sum over all participants, and what each pools, in one collective.

    The weights are known on every rank, so nothing but the tensors travels. A rank without participants enters with zeros. Local sums
    are fp64.
    """
    mean = torch.zeros(link.layout.exchanged_size, dtype=torch.float64, device=rows.device)
    for rule, columns in link.layout.columns.items():
        weights = torch.tensor(rules.weights(uploads, rule), dtype=torch.float64, device=rows.device)
        mean[columns] = weights @ rows[:, columns].double()
    if rules.noise is not None and link.world.is_main:
        mean += rules.noise(uploads, len(mean)).to(mean.device)
    pooled = placed(rows[:, link.pooled], uploads)
    wire = WIRE_DTYPES[link.wire]
    total, rest = link.sum(torch.cat([mean.to(wire), pooled.flatten().to(wire)])).tensor_split([len(mean)])
    return Sum(total, rest.view(pooled.shape))


def placed(rows: Tensor, uploads: Uploads) -> Tensor:
    """[C, n] of the hosted participants -> [N, n] of all, zeros for those elsewhere: what is summed over ranks to gather them."""
    matrix = rows.new_zeros(len(uploads.clients), rows.shape[1])
    matrix[[uploads.clients.index(i) for i in uploads.hosted]] = rows
    return matrix


def replace_by_mean(state: ServerState, mean: Tensor, uploads: Uploads) -> ServerState:
    """FedAvg: the mean of the participants is what everybody receives."""
    return {**state, SHARED: mean}


@dataclass(frozen=True)
class ServerRules:
    """How a server works; as it stands, FedAvg.

    ``transforms`` of what is uploaded, in this order; the ``weights`` of uploads in their sum, and the ``noise`` that the server adds to
    it; the ``aggregate`` that makes the sum; the ``update`` of the state by it. ``controlled``: the update by what the changes of control
    variates come to, which are summed in the same way; None where none are sent. ``wire``: the dtype in which exchanged tensors travel.
    ``reads``: of how many others a client reads what is pooled. ``begin``: what the state holds at the start besides "shared".
    ``in_any_round``: the state is renewed even where no upload has come. ``keys``: participants -> bytes that each would send and receive
    for keys, a model; None where there are none.
    """

    transforms: Sequence[Transform] = ()
    weights: Weights = by_rule
    noise: Noise | None = None
    aggregate: Aggregate = weighted_mean
    update: Update = replace_by_mean
    controlled: Update | None = None
    wire: str = "fp32"
    reads: int = 0
    begin: Mapping[str, Tensor] = field(default_factory=dict)
    in_any_round: bool = False
    keys: Callable[[int], int] | None = None


FEDAVG = ServerRules()
