"""The round loop: Algorithm 1 of pFedMMA, for any method whose `exchange` map says what travels.

Shape legend: C participants that train on this rank, K clients, X exchanged parameters of one client.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from pfedmma.comm.assignment import Assignment
from pfedmma.comm.world import WIRE_DTYPES, World
from pfedmma.data.partition.federated import Client
from pfedmma.engine import graphs, participation
from pfedmma.engine.batches import Coming, Stack
from pfedmma.engine.cohort import Members, PassWidth, train_cohort
from pfedmma.engine.evaluation import Evaluation, Tested
from pfedmma.engine.local import LocalTraining
from pfedmma.records.communication import RoundComm
from pfedmma.records.rows import Accuracy, RoundRow
from pfedmma.server.account import Account
from pfedmma.server.rules import Uploads
from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import GOES_ON, SAME_RESULT, setting
from pfedmma.system.signals import Interruption


@dataclass(frozen=True)
class FederationConfig:
    """Rounds of the federation, and how the clients of a rank share its memory."""

    rounds: int = setting(50, "communication rounds of the whole run", GOES_ON)
    local_epochs: int = setting(2, "epochs over its own images that a participant trains in a round, at most 10,000")
    participation: float = setting(1.0, "share p of the K clients that train in a round, 0 < p <= 1: max(1, round(p K)) of them")
    first_round: str = setting(
        "participation", "who trains in round 1: participation (drawn as in every round), or all clients, as in the released code"
    )
    batch_size: int = setting(32, "images of one client in a training step")
    drop_last: bool = setting(
        False, "leave out an epoch's last batch if it is not full, as in the released code; who has less than one batch trains on it"
    )
    clients_per_pass: str = setting(
        "auto",
        "clients of a rank that share one pass; auto: on a GPU those with 320 images in a step, halved while memory runs out, 10 on a CPU",
        SAME_RESULT,
    )
    graphs: str = setting(
        "auto", "local steps of at most 4 clients as CUDA graphs: auto (on GPUs, where that can be done) or off", SAME_RESULT
    )
    stems_gb: str = setting(
        "auto",
        "memory in GB for what the frozen blocks give of images that come again unchanged; 0 keeps nothing; auto: 2 on a CPU, a quarter of "
        "what is free on a GPU",
        SAME_RESULT,
    )
    device_gb: float = setting(8.0, "GB of the clients' own state that rest on a GPU; the rest lies in host memory", SAME_RESULT)
    host_gb: float = setting(
        16.0,
        "GB of the clients' own state that rest in host memory; the rest lies in a temporary file, as all does that ranks of a node share",
        SAME_RESULT,
    )

    def __post_init__(self) -> None:
        checks.between("rounds", self.rounds, 1, 10_000_000)
        checks.between("local_epochs", self.local_epochs, 1, 10_000)  # their batches are drawn at the start of a round
        checks.between("batch_size", self.batch_size, 1, 1_000_000)
        for name in ("device_gb", "host_gb"):
            checks.at_least(name, getattr(self, name), 0)
        checks.at_least_or_auto("stems_gb", self.stems_gb, 0)
        if self.clients_per_pass != "auto" and not (self.clients_per_pass.isdecimal() and int(self.clients_per_pass) >= 1):
            raise UserError(f"clients_per_pass: must be a whole number from 1 on, or auto, not '{self.clients_per_pass}'")
        checks.in_unit_interval("participation", self.participation)
        checks.one_of("graphs", self.graphs, graphs.CHOICES)
        checks.one_of("first_round", self.first_round, ("participation", "all"))


class Listener(Protocol):
    """Who wants to know about finished rounds."""

    def round_done(self, row: RoundRow) -> None: ...

    def checkpoint_due(self, round_: int) -> bool: ...

    def save(self, round_: int) -> None: ...


@dataclass
class Engine:
    """One rank's part of a federated run."""

    world: World
    assignment: Assignment
    clients: tuple[Client, ...]
    participants: Sequence[int]  # ids of those that may take part in a round: all but the new ones
    training: LocalTraining
    evaluation: Evaluation
    members: Members
    federation: FederationConfig
    seed: int
    width: PassWidth = field(default_factory=lambda: PassWidth(10))
    interruption: Interruption = field(default_factory=Interruption)
    account: Account | None = None  # of what the rounds tell, where noise is added

    @property
    def states(self) -> ClientStates:
        """What clients have of their own, as far as this rank's node has it."""
        return self.members.states

    @property
    def server(self) -> Server:
        return self.members.server

    def run(self, first_round: int, listener: Listener) -> int:
        """Rounds ``first_round`` to the last: sample, train locally, let the server average what is shared, evaluate, record.

        Returns:
            The last round that was done: an interruption of any rank ends the run after its round.
        """
        with Coming() as coming:
            cohort = self.cohort(first_round)
            for round_ in range(first_round, self.federation.rounds + 1):
                clock = Clock()
                self.world.ledger.open_round()
                own, after = self.training_here(cohort), self.cohort(round_ + 1)
                coming.next_round = Stack(self.training_here(after), round_ + 1)
                read = self.server.read_parameters(cohort)
                trained = train_cohort(self.training, own, self.members, round_, self.width, coming)
                clock.lap("train")
                clock.laps["input"] = trained.waited  # the part of training that waited for images
                loss, interrupted = self.collect(cohort, own, trained.losses)  # waits for the slowest rank: the exchange is timed alone
                clock.lap("wait")
                self.server.round(self.uploads(round_, cohort, own, trained.uploads))
                clock.lap("exchange")
                tested = self.test_round(round_) if due(self.evaluation.config.every, round_, self.federation.rounds) else None
                clock.lap("evaluate")
                listener.round_done(self.record(round_, cohort, read, loss, clock, tested))
                if interrupted or listener.checkpoint_due(round_):
                    listener.save(round_)
                if interrupted:
                    return round_
                cohort = after
        return self.federation.rounds

    def cohort(self, round_: int) -> list[int]:
        """The participants of a round, ascending: the same on every rank, whenever it is asked; none after the last round."""
        if round_ > self.federation.rounds:
            return []
        everybody = round_ == 1 and self.federation.first_round == "all"
        return participation.sample(self.participants, 1.0 if everybody else self.federation.participation, self.seed, round_)

    def training_here(self, cohort: Sequence[int]) -> list[Client]:
        """Those of a round's participants that train on this rank."""
        return [self.clients[i] for i in self.assignment.training(cohort)]

    def uploads(self, round_: int, cohort: Sequence[int], own: Sequence[Client], rows: Tensor) -> Uploads:
        """What the participants send; ``rows`` [C, X]: of ``own``, those on this rank."""
        samples = [len(self.clients[i].train) for i in cohort]
        return Uploads(round_, cohort, samples, [client.id for client in own], rows)

    def collect(self, cohort: Sequence[int], own: Sequence[Client], losses: Tensor) -> tuple[float, bool]:
        """The weighted mean of all participants' losses, and whether any rank was asked to end; ``losses`` [C]: of ``own``.

        From here on every rank finds the state that the others' participants were left with.
        """
        sizes = {i: len(self.clients[i].train) for i in cohort}
        mine = sum(sizes[c.id] * x for c, x in zip(own, losses.tolist(), strict=True))
        loss, asked = self.world.sum(torch.tensor([mine, float(self.interruption.asked)], dtype=torch.float64), "metrics").tolist()
        return loss / sum(sizes.values()), asked > 0

    def evaluate(self) -> Accuracy:
        """Accuracy of every client with what it answers with now. All ranks enter."""
        return self.evaluation.test(self.training.method, self.members, self.training.batches.stems)

    def test_round(self, round_: int) -> Tested:
        """As `evaluate`, and what else is recorded of a round. All ranks enter."""
        return self.evaluation.of_round(round_, self.training.method, self.members, self.training.batches.stems)

    def record(self, round_: int, cohort: Sequence[int], read: int, loss: float, clock: Clock, tested: Tested | None) -> RoundRow:
        """The round's object in ``metrics.jsonl``; ``read``: parameters of others that the participants were sent."""
        samples = sum(len(self.clients[i].train) for i in cohort)
        wire_bytes = WIRE_DTYPES[self.server.rules.wire].itemsize
        comm = RoundComm(**self.world.ledger.close_round(self.training.layout.exchanged_size, len(cohort), wire_bytes, read))
        row = RoundRow(round_, tuple(cohort), samples, loss, dict(clock.seconds()), comm)
        if self.world.is_main:  # it alone writes rows
            norm = float(self.server.shared.norm()) if len(self.server.shared) else None
            row = replace(row, shared_norm=norm, privacy=self.account.after(round_) if self.account else None)
        return row if tested is None else replace(row, **tested._asdict())


class Clock:
    """Seconds of the parts of a round."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def seconds(self) -> dict[str, float]:
        return self.laps | {"total": self.last - self.start}


def due(every: int, round_: int, last: int) -> bool:
    """Whether what happens ``every`` so many rounds happens after this one: the last always counts, 0 is never."""
    return every > 0 and (round_ % every == 0 or round_ == last)
