"""The server: its state, what participants upload, how uploads are summed, and how the sum becomes the next state.

The server is no process of its own: every rank holds the same state, and one all-reduce of what the participants of all ranks send is the
round. Uploads may be transformed before they are summed (clipped, compressed, masked), and the mean of the uploads may become the next
state by a rule with a state of its own (momentum, Adam); `replace_by_mean` is FedAvg.

Shape legend: C participants that train on this rank, X exchanged parameters of one client, Y of them pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.comm.ledger import EXCHANGE
from pfedmma.comm.world import WIRE_DTYPES, World
from pfedmma.stack.layout import Layout
from pfedmma.stack.pool import Pool, is_entry
from pfedmma.stack.rules import POOL, UNIFORM, Others
from pfedmma.system.errors import UserError

SHARED = "shared"  # the entry of the server's state that clients receive [X]


@dataclass(frozen=True)
class Uploads:
    """What the participants of a round send.

    ``clients``: ids of all participants, ascending, and ``samples``: their numbers of training images, both known on every rank.
    ``hosted``: the ids of those that train on this rank; ``rows`` [C, X]: their exchanged tensors after local training.
    """

    round: int
    clients: Sequence[int]
    samples: Sequence[int]
    hosted: Sequence[int]
    rows: Tensor


ServerState = dict[str, Tensor]
# (the round's uploads, a rule of `pfedmma.stack.rules`) -> the weight of each hosted participant in the sum over all [C].
Weights = Callable[[Uploads, str], Sequence[float]]
# (what the hosted participants send [C, X], the round's uploads, the server's state) -> what they send instead [C, X].
Transform = Callable[[Tensor, Uploads, ServerState], Tensor]
# (the server's state, the mean of the uploads [X], the round's uploads) -> the next state, identical on all ranks.
Update = Callable[[ServerState, Tensor, Uploads], ServerState]


def by_rule(uploads: Uploads, rule: str) -> list[float]:
    """n_i / n, or 1 / participants under rule ``uniform``. They follow from the partition, so no rank has to be told."""
    sizes, total = dict(zip(uploads.clients, uploads.samples, strict=True)), sum(uploads.samples)
    return [1.0 / len(uploads.clients) if rule == UNIFORM else sizes[i] / total for i in uploads.hosted]


def replace_by_mean(state: ServerState, mean: Tensor, uploads: Uploads) -> ServerState:
    """FedAvg: the mean of the participants is what everybody receives."""
    return {**state, SHARED: mean}


@dataclass(frozen=True)
class ServerRules:
    """How a server works.

    ``transforms`` of what is uploaded, in this order; the ``weights`` of uploads in their sum; the ``update`` of the state by it. ``wire``:
    the dtype in which exchanged tensors travel. ``reads``: of how many others a client reads what is pooled.
    """

    transforms: Sequence[Transform] = ()
    weights: Weights = by_rule
    update: Update = replace_by_mean
    wire: str = "fp32"
    reads: int = 0


FEDAVG = ServerRules()


class Server:
    """The server's state, the same on every rank.

    ``state``: "shared" [X] and whatever the rules' update keeps; it begins as ``initial``. ``pool``: what participants sent last, for
    methods whose clients read that of others.
    """

    def __init__(self, layout: Layout, initial: Mapping[str, Tensor], world: World, rules: ServerRules = FEDAVG) -> None:
        self.layout, self.world, self.rules = layout, world, rules
        self.state: ServerState = {name: tensor.to(world.device, copy=True) for name, tensor in initial.items()}
        self.pool = Pool()

    @property
    def shared(self) -> Tensor:
        """What every client receives [X]."""
        return self.state[SHARED]

    def round(self, uploads: Uploads) -> None:
        """Make the next state out of a round's uploads. All ranks enter, with one collective.

        Raises:
            UserError: the sum, or the state that follows from it, is not finite; the state is left as it was.
        """
        if self.layout.exchanged_size == 0:
            return
        rows = uploads.rows
        for transform in self.rules.transforms:
            rows = transform(rows, uploads, self.state)
        mean, pooled = self._sum(uploads, rows)
        state = self.rules.update(self.state, mean, uploads)
        made = {id(tensor): tensor for tensor in (mean, pooled, *state.values())}.values()  # FedAvg's state is the mean itself
        if not bool(torch.stack([torch.isfinite(tensor).all() for tensor in made]).all()):  # one wait for the device
            raise UserError(_why_not_finite(uploads.round, self.rules.wire))
        if POOL in self.layout.columns:
            self.pool.keep(uploads.clients, pooled, self.shared[self.pool_columns])
        self.state = state

    def _sum(self, uploads: Uploads, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum over all participants [X], and what each of them pools [participants, Y], from this rank's ``rows`` [C, X].

        The weights are known on every rank, so nothing but the tensors travels. A rank without participants enters with zeros. Local sums
        are fp64.
        """
        mean = torch.zeros(self.layout.exchanged_size, dtype=torch.float64, device=rows.device)
        for rule, columns in self.layout.columns.items():
            weights = torch.tensor(self.rules.weights(uploads, rule), dtype=torch.float64, device=rows.device)
            mean[columns] = weights @ rows[:, columns].double()
        own = rows[:, self.pool_columns]
        pooled = own.new_zeros(len(uploads.clients), own.shape[1])
        pooled[[uploads.clients.index(i) for i in uploads.hosted]] = own
        wire = WIRE_DTYPES[self.rules.wire]
        sent = torch.cat([mean.to(wire), pooled.flatten().to(wire)])
        mean, rest = self.world.sum(sent, EXCHANGE).float().tensor_split([len(mean)])
        return mean, rest.view(pooled.shape)

    @property
    def pool_columns(self) -> slice:
        """Which exchanged parameters are pooled."""
        return self.layout.columns.get(POOL, slice(0, 0))

    def others(self, ids: Sequence[int]) -> Others | None:
        """What these clients read of others; None if there is nothing to read."""
        return self.pool.others(self.layout, ids, self.shared, self.rules.reads)

    def read_parameters(self, cohort: Sequence[int]) -> int:
        """How many parameters of other clients the participants are sent at the start of a round, together."""
        columns = self.pool_columns
        return sum(self.pool.readable(i, self.rules.reads) for i in cohort) * (columns.stop - columns.start)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as flat tensors by name; the same on every rank."""
        return self.state | self.pool.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`. Raises a ValueError, which says what is wrong, unless the tensors are those of such a server."""
        pooled = {name: row for name, row in tensors.items() if is_entry(name)}
        state = {name: tensor for name, tensor in tensors.items() if name not in pooled}
        width = self.pool_columns.stop - self.pool_columns.start
        wrong = [name for name in self.state.keys() ^ state.keys()]
        wrong += [name for name in self.state.keys() & state.keys() if state[name].shape != self.state[name].shape]
        wrong += [name for name, row in pooled.items() if list(row.shape) != [width] or not width]
        if wrong:
            raise ValueError(f"the server's '{min(wrong)[:60]}' is missing, one too many, or of another size")
        self.state = {name: state[name].float().to(self.world.device) for name in self.state}
        self.pool = Pool.from_state({name: row.float().to(self.world.device) for name, row in pooled.items()})


def _why_not_finite(round_: int, wire: str) -> str:
    """What every rank says: all have the same sum."""
    start = f"the exchange of round {round_} gave numbers that are not finite"
    if wire == "fp32":
        return f"{start}; lower optimizer.lr"
    return f"{start}: the exchanged tensors are too large for distributed.wire={wire}; set distributed.wire=fp32"
