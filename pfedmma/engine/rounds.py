"""The round loop: Algorithm 1 of pFedMMA, for any method whose `exchange` map says what travels.

Shape legend: C participants that this rank hosts, K clients, X exchanged parameters of one client.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from pfedmma.accuracy.evaluator import EvaluationConfig, Evaluator, Told, in_silence
from pfedmma.accuracy.first_texts import FirstTexts
from pfedmma.accuracy.metrics import summarise
from pfedmma.accuracy.selection import Best, better
from pfedmma.clip.stems import StemCache
from pfedmma.comm.world import WIRE_DTYPES, World
from pfedmma.data.partition.federated import Client
from pfedmma.engine import participation
from pfedmma.engine.cohort import Members, PassWidth, train_cohort
from pfedmma.engine.local import LocalTraining
from pfedmma.engine.server import Server, Uploads
from pfedmma.methods.base import Method
from pfedmma.records.communication import RoundComm
from pfedmma.records.rows import Accuracy, RoundRow
from pfedmma.records.selected import LAST
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
        "clients of a rank that share one pass; auto: as many as the memory of the GPU takes, 10 on a CPU",
        SAME_RESULT,
    )
    stems_gb: float = setting(
        2.0,
        "memory in GB for what the frozen blocks give of images that come again unchanged; 0 keeps nothing",
        SAME_RESULT,
    )
    device_gb: float = setting(8.0, "GB of the clients' own state that rest on a GPU; the rest lies in host memory", SAME_RESULT)
    host_gb: float = setting(16.0, "GB of the clients' own state that rest in host memory; the rest lies in a temporary file", SAME_RESULT)

    def __post_init__(self) -> None:
        checks.between("rounds", self.rounds, 1, 10_000_000)
        checks.between("local_epochs", self.local_epochs, 1, 10_000)  # their batches are drawn at the start of a round
        checks.between("batch_size", self.batch_size, 1, 1_000_000)
        for name in ("stems_gb", "device_gb", "host_gb"):
            checks.at_least(name, getattr(self, name), 0)
        if self.clients_per_pass != "auto" and not (self.clients_per_pass.isdecimal() and int(self.clients_per_pass) >= 1):
            raise UserError(f"clients_per_pass: must be a whole number from 1 on, or auto, not '{self.clients_per_pass}'")
        checks.in_unit_interval("participation", self.participation)
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
    clients: tuple[Client, ...]
    training: LocalTraining
    evaluator: Evaluator
    members: Members
    federation: FederationConfig
    evaluation: EvaluationConfig
    seed: int
    width: PassWidth = field(default_factory=lambda: PassWidth(10))
    interruption: Interruption = field(default_factory=Interruption)
    told: Told = in_silence  # how far an evaluation has come
    table: Tensor | None = field(default=None)  # accuracies of the last evaluation, all clients [K, 4]
    texts: FirstTexts = field(default_factory=FirstTexts)
    validator: Evaluator | None = None  # tests on the validation split, where that selects the round that is reported
    best: Best | None = None  # of the evaluated rounds so far, where one is selected

    @property
    def states(self) -> ClientStates:
        """What the clients of this rank have of their own."""
        return self.members.states

    @property
    def participants(self) -> list[int]:
        """Ids of the clients that may take part in a round, and whose accuracies are the run's: all but the new ones."""
        return [client.id for client in self.clients if not client.new]

    @property
    def server(self) -> Server:
        return self.members.server

    def run(self, first_round: int, listener: Listener) -> int:
        """Rounds ``first_round`` to the last: sample, train locally, let the server average what is shared, evaluate, record.

        Returns:
            The last round that was done: an interruption of any rank ends the run after its round.
        """
        for round_ in range(first_round, self.federation.rounds + 1):
            clock = Clock()
            self.world.ledger.open_round()
            everybody = round_ == 1 and self.federation.first_round == "all"
            cohort = participation.sample(self.participants, 1.0 if everybody else self.federation.participation, self.seed, round_)
            read = self.server.read_parameters(cohort)
            trained = train_cohort(self.training, self.hosted(cohort), self.members, round_, self.width)
            clock.lap("train")
            clock.laps["input"] = trained.waited  # the part of training that waited for images
            loss, interrupted = self.collect(cohort, trained.losses)  # also waits for the slowest rank: the exchange is timed alone
            clock.lap("wait")
            self.server.round(self.uploads(round_, cohort, trained.uploads))
            clock.lap("exchange")
            evaluated = due(self.evaluation.every, round_, self.federation.rounds)
            accuracy = self.evaluate() if evaluated else None
            validation = self.select(round_, accuracy) if accuracy else None
            clock.lap("evaluate")
            listener.round_done(replace(self.record(round_, cohort, read, loss, clock, accuracy), validation=validation))
            if interrupted or listener.checkpoint_due(round_):
                listener.save(round_)
            if interrupted:
                return round_
        return self.federation.rounds

    def hosted(self, ids: Sequence[int]) -> list[Client]:
        """Those of the clients that live on this rank."""
        return [self.clients[i] for i in ids if self.world.hosts(i)]

    def uploads(self, round_: int, cohort: Sequence[int], rows: Tensor) -> Uploads:
        """What the participants send; ``rows`` [C, X] of those on this rank."""
        samples = [len(self.clients[i].train) for i in cohort]
        return Uploads(round_, cohort, samples, [client.id for client in self.hosted(cohort)], rows)

    def collect(self, cohort: Sequence[int], losses: Tensor) -> tuple[float, bool]:
        """The weighted mean of all participants' losses, and whether any rank was asked to end."""
        sizes = {i: len(self.clients[i].train) for i in cohort}
        own = sum(sizes[c.id] * x for c, x in zip(self.hosted(cohort), losses.tolist(), strict=True))
        loss, asked = self.world.sum(torch.tensor([own, float(self.interruption.asked)], dtype=torch.float64), "metrics").tolist()
        return loss / sum(sizes.values()), asked > 0

    def evaluate(self) -> Accuracy:
        """Accuracy of every client with what it answers with now; keeps the table by client. All ranks enter."""
        self.table = self.evaluate_all(self.training.method, self.members, self.training.batches.stems, self.shared_texts())
        return self.summarise(self.table)

    def select(self, round_: int, accuracy: Accuracy) -> Accuracy | None:
        """Compare an evaluated round with the best so far; its accuracy on the validation split, where that decides. All ranks enter."""
        if self.evaluation.select == LAST:
            return None
        assert self.table is not None
        validation = None
        if self.validator is not None:
            stems = self.training.batches.stems
            table = self.evaluate_all(self.training.method, self.members, stems, self.shared_texts(), self.validator)
            validation = self.summarise(table)
        self.best = better(self.best, self.evaluation.select, round_, validation or accuracy, self.table)
        return validation

    @property
    def reported(self) -> Tensor | None:
        """The accuracies that the run reports [K, 4]: those of the best round where one is selected, else the last; None before any."""
        return self.table if self.best is None else self.best.table

    def shared_texts(self) -> Mapping[str, Tensor]:
        """Text features that all clients are tested with, see `Answers`. All ranks enter."""
        if self.evaluation.text_features == "current":
            return {}
        first = self.clients[self.tested()[0]]
        return self.texts.get(self.evaluator, self.training.method, self.members.answers(), first, self.world)

    def tested(self) -> list[int]:
        """The clients that are tested."""
        return participation.tested(self.participants, self.evaluation.clients, self.seed)

    def summarise(self, table: Tensor) -> Accuracy:
        """Averages of a table over clients, and over their domains if they have any."""
        return summarise(table, [client.domain for client in self.clients])

    def evaluate_all(
        self,
        method: Method,
        members: Members,
        stems: StemCache | None = None,
        texts: Mapping[str, Tensor] | None = None,
        evaluator: Evaluator | None = None,
    ) -> Tensor:
        """Accuracies of all clients [K, 4]: each rank tests its own, then all know all. NaN of who is not tested, as new clients.

        ``evaluator``: of other images than those of the run's split.
        """
        tested = self.tested()
        hosted = self.hosted(tested)
        if evaluator is not None:  # whose clients have images of their own in its split
            hosted = [evaluator.federated.clients[client.id] for client in hosted]
        own = (evaluator or self.evaluator).table(method, replace(members.answers(), texts=texts or {}), hosted, stems, self.told)
        table = torch.zeros(len(self.clients), own.shape[1], dtype=torch.float64)
        table[[client.id for client in hosted]] = own
        table = self.world.sum(table.flatten(), "metrics").view(table.shape)
        return table if len(tested) == len(table) else torch.full_like(table, torch.nan).index_copy(0, torch.tensor(tested), table[tested])

    def record(self, round_: int, cohort: Sequence[int], read: int, loss: float, clock: Clock, accuracy: Accuracy | None) -> RoundRow:
        """The round's object in ``metrics.jsonl``; ``read``: parameters of others that the participants were sent."""
        samples = sum(len(self.clients[i].train) for i in cohort)
        wire_bytes = WIRE_DTYPES[self.server.rules.wire].itemsize
        comm = RoundComm(**self.world.ledger.close_round(self.training.layout.exchanged_size, len(cohort), wire_bytes, read))
        split = self.evaluator.federated.base.split if accuracy else None
        return RoundRow(round_, tuple(cohort), samples, loss, dict(clock.seconds()), comm, accuracy, split)


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
