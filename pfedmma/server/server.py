"""The server: its state, and a round of it.

The server is no process of its own: every rank holds the same state, and one all-reduce of what the participants of all ranks send is the
round. How it is done are values, see `pfedmma.server.rules`; `FEDAVG` is the plain mean.

Shape legend: X exchanged parameters of one client, Y of them pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pfedmma.comm.world import World
from pfedmma.server.rules import FEDAVG, SHARED, Link, ServerRules, ServerState, Uploads
from pfedmma.stack.layout import Layout
from pfedmma.stack.pool import Pool, is_entry
from pfedmma.stack.rules import POOL, Others
from pfedmma.system.errors import UserError


class Server:
    """The server's state, the same on every rank.

    ``state``: "shared" [X] and whatever the rules' update keeps; it begins as ``initial``. ``pool``: what participants sent last, for
    methods whose clients read that of others.
    """

    def __init__(self, layout: Layout, initial: Mapping[str, Tensor], world: World, rules: ServerRules = FEDAVG) -> None:
        self.layout, self.world, self.rules = layout, world, rules
        begin = {**rules.begin, **initial}
        self.state: ServerState = {name: tensor.to(world.device, copy=True) for name, tensor in begin.items()}
        self.pool = Pool()

    @property
    def shared(self) -> Tensor:
        """What every client receives [X]."""
        return self.state[SHARED]

    @property
    def exchanged(self) -> int:
        """How many numbers a participant is sent in a round besides what it reads of others, and sends."""
        return self.travelling(self.layout.exchanged_size)

    def travelling(self, exchanged: int) -> int:
        """How many numbers travel each way of a client that exchanges so many: as many again where control variates go beside."""
        return exchanged * (1 if self.rules.controlled is None else 2)

    @property
    def link(self) -> Link:
        """How this rank and the others sum."""
        return Link(self.layout, self.world, self.rules.wire)

    def round(self, uploads: Uploads) -> None:
        """Make the next state out of a round's uploads. All ranks enter.

        Raises:
            UserError: the sum, or the state that follows from it, is not finite; the state is left as it was.
        """
        rules = self.rules
        if self.layout.exchanged_size == 0:
            return
        if not (uploads.clients or rules.in_any_round):  # what there is stays
            self._keep_pooled(uploads, uploads.rows[:, self.link.pooled])
            return
        rows = uploads.rows
        for transform in rules.transforms:
            rows = transform(rows, uploads, self.state)
        mean, pooled = rules.aggregate(rows, uploads, self.state, rules, self.link)
        state = rules.update(self.state, mean, uploads)
        if rules.controlled is not None and uploads.controls is not None:
            changes, _ = rules.aggregate(uploads.controls, uploads, self.state, rules, self.link)
            state = rules.controlled(state, changes, uploads)
        made = {id(tensor): tensor for tensor in (mean, pooled, *state.values())}.values()  # FedAvg's state is the mean itself
        if not bool(torch.stack([torch.isfinite(tensor).all() for tensor in made]).all()):  # one wait for the device
            raise UserError(_why_not_finite(uploads.round, rules.wire))
        self._keep_pooled(uploads, pooled)
        self.state = state

    def _keep_pooled(self, uploads: Uploads, pooled: Tensor) -> None:
        """What the participants sent of what is pooled [N, Y], before the state is renewed."""
        if POOL in self.layout.columns:
            self.pool.keep(uploads.clients, pooled, self.shared[self.link.pooled], uploads.lost)

    def others(self, ids: Sequence[int]) -> Others | None:
        """What these clients read of others; None if there is nothing to read."""
        return self.pool.others(self.layout, ids, self.shared, self.rules.reads)

    def read_parameters(self, cohort: Sequence[int]) -> int:
        """How many parameters of other clients the participants are sent at the start of a round, together."""
        columns = self.link.pooled
        return sum(self.pool.readable(i, self.rules.reads) for i in cohort) * (columns.stop - columns.start)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as flat tensors by name; the same on every rank."""
        return self.state | self.pool.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`. Raises a ValueError, which says what is wrong, unless the tensors are those of such a server."""
        pooled = {name: row for name, row in tensors.items() if is_entry(name)}
        state = {name: tensor for name, tensor in tensors.items() if name not in pooled}
        width = self.link.pooled.stop - self.link.pooled.start
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
