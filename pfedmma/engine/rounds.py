"""The round loop: Algorithm 1 of pFedMMA, for any method whose `exchange` map says what travels.

Shape legend: C participants that train on this rank, K clients, X exchanged parameters of one client.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from pfedmma.accuracy.evaluator import Told, in_silence
from pfedmma.comm.assignment import Assignment
from pfedmma.comm.ledger import Moved
from pfedmma.comm.world import WIRE_DTYPES, World
from pfedmma.data.partition.federated import Client
from pfedmma.engine import participation
from pfedmma.engine.arrivals import Arrived, arrivals
from pfedmma.engine.batches import Coming, Stack, steps
from pfedmma.engine.cohort import Members, PassWidth, Trained, train_cohort
from pfedmma.engine.evaluation import Evaluation, Tested
from pfedmma.engine.federation import FederationConfig
from pfedmma.engine.local import AFTER_THE_ROUNDS, LocalTraining, counted
from pfedmma.engine.picked import PickedRows
from pfedmma.records.communication import RoundComm
from pfedmma.records.lost import Lost
from pfedmma.records.rows import Accuracy, RoundRow
from pfedmma.server.account import Account
from pfedmma.server.rules import Uploads
from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.system.signals import Interruption


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
    fine_tuning: LocalTraining | None = None  # what every client does for itself after the last round, before it is tested
    told: Told = in_silence  # how many steps of that are done here

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
                arrived = self.arrived(round_, cohort)
                clock.lap("wait")
                self.exchange(round_, arrived, own, trained)
                clock.lap("exchange")
                if self.fine_tuning is not None and round_ == self.federation.rounds:
                    self.fine_tune(self.fine_tuning)
                    clock.lap("fine_tune")
                tested = self.test_round(round_) if due(self.evaluation.config.every, round_, self.federation.rounds) else None
                clock.lap("evaluate")
                listener.round_done(self.record(round_, arrived, read, loss, clock, tested))
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
        return participation.sample(self.participants, self.federation, self.seed, round_)

    def training_here(self, cohort: Sequence[int]) -> list[Client]:
        """Those of a round's participants that train on this rank."""
        return [self.clients[i] for i in self.assignment.training(cohort)]

    def arrived(self, round_: int, cohort: Sequence[int]) -> Arrived:
        """Whose upload counts, of the participants who have trained: the same on every rank."""
        wanted = participation.wanted(len(self.participants), self.federation, round_)
        return arrivals(cohort, wanted, self.assignment.work, self.federation, self.seed, round_)

    def uploads(self, round_: int, arrived: Arrived, own: Sequence[Client], rows: Tensor, controls: Tensor | None = None) -> Uploads:
        """What the participants send that counts; ``rows``, ``controls`` [C, X]: of ``own``, those on this rank."""
        samples, counted = [len(self.clients[i].train) for i in arrived.counted], frozenset(arrived.counted)
        here = [row for row, client in enumerate(own) if client.id in counted]
        if len(here) < len(own):  # row by row: an index made of a list would be waited for on a GPU
            rows = torch.stack([rows[row] for row in here]) if here else rows[:0]
        # Where there are controls no upload is lost.
        return Uploads(round_, arrived.counted, samples, [own[row].id for row in here], rows, arrived.lost, controls)

    def exchange(self, round_: int, arrived: Arrived, own: Sequence[Client], trained: Trained) -> None:
        """Let the server make its next state of what the participants send; ``trained``: of ``own``. All ranks enter."""
        if not self.training.layout.picked:
            return self.server.round(self.uploads(round_, arrived, own, trained.uploads, trained.controls))
        ids = [client.id for client in own]
        picked = PickedRows.after_training(self.training.method, self.members, ids, round_, self.seed)
        self.server.round(self.uploads(round_, arrived, own, picked.sent(self.members), None))
        picked.write_back(self.members, arrived.counted)
        self.world.wait("rows")  # another rank may test these clients, or train them next

    def moved(self, round_: int, arrived: Arrived, read: int) -> Moved:
        """How many numbers the participants of a round send and are sent, together; ``read``: those of other clients.

        Each gets what it sends. Where participants pick rows, those get it whose upload counts, after the round; and before it, to pick by,
        those whose upload did not count when the server last made it.
        """

        def numbers(ids: Iterable[int]) -> int:
            return sum(self.server.travelling(self.states.exchanged_size(i)) for i in ids)

        sent = numbers(arrived.cohort)
        lost = numbers(arrived.lost) if self.federation.loses_uploads else None
        if not self.training.layout.picked:
            return Moved(sent, sent + read, lost)
        behind = self.without_the_last_mean(round_, arrived.cohort)
        return Moved(sent, numbers(arrived.counted) + numbers(behind), lost)

    def without_the_last_mean(self, round_: int, cohort: Sequence[int]) -> set[int]:
        """Those of a round's participants whose upload was not in the last sum before it; nobody where there was none."""
        for before in range(round_ - 1, 0, -1):
            counted = self.arrived(before, self.cohort(before)).counted
            if counted:
                return set(cohort) - set(counted)
        return set()

    def collect(self, cohort: Sequence[int], own: Sequence[Client], losses: Tensor) -> tuple[float | None, bool]:
        """The weighted mean of all participants' losses, None of nobody, and whether any rank was asked to end; ``losses`` [C]: of ``own``.

        From here on every rank finds the state that the others' participants were left with.
        """
        sizes = {i: len(self.clients[i].train) for i in cohort}
        mine = sum(sizes[c.id] * x for c, x in zip(own, losses.tolist(), strict=True))
        loss, asked = self.world.sum(torch.tensor([mine, float(self.interruption.asked)], dtype=torch.float64), "metrics").tolist()
        return loss / sum(sizes.values()) if cohort else None, asked > 0

    def fine_tune(self, training: LocalTraining) -> None:
        """Every client trains on alone, from what it would begin a next round with, and answers with what it is left with. All ranks enter.

        What rounds go on from stays: a run with more rounds goes on as if this had not been.
        """
        own = self.training_here(self.participants)
        total = sum(steps(client, training.batches.work) for client in own)
        self.told(0, total)
        train_cohort(replace(training, after_step=counted(self.told, total)), own, self.members, AFTER_THE_ROUNDS, self.width)
        self.world.wait("fine_tuning")  # another rank of the node may test who has trained here

    def evaluate(self) -> Accuracy:
        """Accuracy of every client with what it answers with now. All ranks enter."""
        return self.evaluation.test(self.training.method, self.members, self.training.batches.stems)

    def test_round(self, round_: int) -> Tested:
        """As `evaluate`, and what else is recorded of a round. All ranks enter."""
        return self.evaluation.of_round(round_, self.training.method, self.members, self.training.batches.stems)

    def record(self, round_: int, arrived: Arrived, read: int, loss: float | None, clock: Clock, tested: Tested | None) -> RoundRow:
        """The round's object in ``metrics.jsonl``; ``read``: parameters of others that the participants were sent."""
        cohort, federation = arrived.cohort, self.federation
        lost = Lost(tuple(arrived.failed), tuple(arrived.late)) if federation.loses_uploads else None
        simulated = arrived.seconds if federation.simulates_time else None
        samples = sum(len(self.clients[i].train) for i in cohort)
        wire_bytes = WIRE_DTYPES[self.server.rules.wire].itemsize
        comm = self.world.ledger.close_round(self.server.exchanged, self.moved(round_, arrived, read), wire_bytes)
        keys = None if self.server.rules.keys is None else len(cohort) * self.server.rules.keys(len(cohort))
        moved = RoundComm(**comm, key_exchange_bytes_modelled=keys)
        row = RoundRow(round_, tuple(cohort), samples, loss, dict(clock.seconds()), moved, lost=lost, simulated_seconds=simulated)
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
