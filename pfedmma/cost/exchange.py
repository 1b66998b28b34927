"""What a method moves, by arithmetic alone: a client and round, a whole run, and a rank of a ring.

With a method whose clients read each other's tensors, nobody has anything to read in round 1; from then on every other client is taken to
have sent something, which holds under full participation and is the most there can be under any other. Nobody is taken to drop out; under
Poisson sampling the numbers are the mean over rounds. Where clients differ in width, they are those of the widest; where participants pick
rows, all are taken to have been in the last mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from pfedmma.comm.ledger import ring_bytes
from pfedmma.comm.world import WIRE_DTYPES
from pfedmma.config.schema import Config
from pfedmma.data.partition.federated import count_new
from pfedmma.engine import participation
from pfedmma.methods.base import Method
from pfedmma.stack.rules import POOL


@dataclass(frozen=True)
class Rounds:
    """``eligible`` clients may take part; ``first`` of them do in round 1, and ``each`` in each of the others of ``count`` rounds."""

    eligible: int
    first: float
    each: float
    count: int

    @classmethod
    def from_config(cls, config: Config, clients: int) -> Rounds:
        """As a run of ``config`` with so many clients."""
        rounds = config.federation
        eligible = clients - count_new(clients, config.data.new_clients)
        each = participation.training(eligible, rounds)
        return cls(eligible, eligible if rounds.first_round == "all" else each, each, rounds.rounds)

    @property
    def uploads(self) -> float:
        """Of the whole run."""
        return self.first + self.later

    @property
    def later(self) -> float:
        """Uploads after round 1."""
        return (self.count - 1) * self.each


@dataclass(frozen=True)
class Exchange:
    """What a ``method`` moves in ``rounds`` in the dtype ``wire``: bytes. ``controls``: control variates travel as well."""

    method: Method
    rounds: Rounds
    wire: str
    controls: bool = False

    @property
    def number(self) -> int:
        """Bytes of a number."""
        return WIRE_DTYPES[self.wire].itemsize

    @property
    def up(self) -> int:
        """A client and round."""
        return self.number * self.method.layout.exchanged_size + self.beside

    @property
    def beside(self) -> int:
        """Control variates of a client and round, each way."""
        return self.number * self.method.layout.exchanged_size if self.controls else 0

    @property
    def down(self) -> int:
        """A client and round."""
        return self.number * self.method.received(self.rounds.eligible - 1) + self.beside

    @property
    def up_of_run(self) -> int:
        return round(self.rounds.uploads * self.up)

    @property
    def down_of_run(self) -> int:
        first = self.number * self.method.received(0) + self.beside
        return round(self.rounds.first * first + self.rounds.later * self.down)

    def payload(self) -> float:
        """What ranks hand to the all-reduce of a round under FedAvg: the weighted sum, and beside it what each participant pools."""
        pooled = self.method.layout.columns.get(POOL, slice(0, 0))
        return self.up + self.number * self.rounds.each * (pooled.stop - pooled.start)

    def ring(self, ranks: int) -> float:
        """Bytes that each rank of a ring all-reduce sends in a round, and receives: a model."""
        return ring_bytes(self.payload(), ranks)
