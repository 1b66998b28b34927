"""Clients tested between rounds: who is tested, what it comes to, and which round the run reports.

Shape legend: K clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pfedmma.accuracy.evaluator import EvaluationConfig, Evaluator, Told, in_silence
from pfedmma.accuracy.first_texts import FirstTexts
from pfedmma.accuracy.metrics import client_scores, summarise
from pfedmma.accuracy.selection import Best, better
from pfedmma.accuracy.watch import Watch
from pfedmma.clip.stems import StemCache
from pfedmma.comm.assignment import Assignment
from pfedmma.data.partition.federated import Client
from pfedmma.engine import participation
from pfedmma.engine.cohort import Members
from pfedmma.methods.base import Method
from pfedmma.records.evaluated import ClientScores, Diagnostics
from pfedmma.records.rows import Accuracy
from pfedmma.records.selected import LAST


class Tested(NamedTuple):
    """What is recorded of a round in which clients were tested; see `RoundRow`."""

    accuracy: Accuracy
    split: str
    validation: Accuracy | None
    per_client: ClientScores | None


@dataclass
class Evaluation:
    """One rank's part of testing all clients.

    ``validator``: tests on the validation split, where that selects the round that is reported. ``told``: how far a test has come.
    ``accuracy`` and ``table`` [K, 4]: of the last evaluation; ``best``: of the evaluated rounds so far, where one is selected.
    """

    config: EvaluationConfig
    evaluator: Evaluator
    clients: tuple[Client, ...]
    participants: Sequence[int]
    assignment: Assignment
    seed: int
    validator: Evaluator | None = None
    told: Told = in_silence
    texts: FirstTexts = field(default_factory=FirstTexts)
    accuracy: Accuracy | None = None
    table: Tensor | None = None
    best: Best | None = None

    @cached_property
    def tested(self) -> list[int]:
        """The clients that are tested, ascending; new clients come later."""
        return participation.tested(self.participants, self.config.clients, self.seed)

    def of_round(self, round_: int, method: Method, members: Members, stems: StemCache) -> Tested:
        """All clients with what they answer with now, and whether this round is the best so far. All ranks enter."""
        accuracy = self.test(method, members, stems)
        validation = self._select(round_, method, members, stems)
        few = len(self.tested) <= self.config.per_client
        each = client_scores(self.table, self.tested) if few and self.table is not None else None
        return Tested(accuracy, self.evaluator.federated.base.split, validation, each)

    def test(self, method: Method, members: Members, stems: StemCache) -> Accuracy:
        """Accuracy of every client with what it answers with now, kept with the table by client. All ranks enter."""
        self.accuracy, self.table = self.measured(method, members, stems, self.shared_texts(method, members))
        return self.accuracy

    def _select(self, round_: int, method: Method, members: Members, stems: StemCache) -> Accuracy | None:
        """Compare the round just tested with the best so far; its accuracy on the validation split, where that decides. All ranks enter."""
        if self.config.select == LAST:
            return None
        assert self.accuracy is not None and self.table is not None
        validation = None
        if self.validator is not None:
            table = self._table(self.validator, method, members, stems, self.shared_texts(method, members))
            validation = self.summarise(table)
        self.best = better(self.best, self.config.select, round_, validation or self.accuracy, self.table)
        return validation

    @property
    def reported(self) -> tuple[Accuracy | None, Tensor | None]:
        """The averages and the accuracies [K, 4] that the run reports: of the best round where one is selected, else the last.

        Diagnostics are of the last round alone.
        """
        return (self.accuracy, self.table) if self.best is None else (self.summarise(self.best.table), self.best.table)

    def measured(
        self, method: Method, members: Members, stems: StemCache | None = None, texts: Mapping[str, Tensor] | None = None
    ) -> tuple[Accuracy, Tensor]:
        """Averages over clients, with diagnostics if they are wanted, and the accuracies of each [K, 4]. All ranks enter.

        ``texts``: text features that all clients are tested with, see `Answers`.
        """
        watch = Watch(len(self.evaluator.federated.base.indices)) if self.config.diagnostics else None
        table = self._table(self.evaluator, method, members, stems, texts, watch)
        return self.summarise(table, watch.result() if watch else None), table

    def summarise(self, table: Tensor, diagnostics: Diagnostics | None = None) -> Accuracy:
        """Averages of a table over clients, and over their domains if they have any, beside the ``diagnostics``."""
        return summarise(table, [client.domain for client in self.clients], diagnostics)

    def _table(
        self,
        evaluator: Evaluator,
        method: Method,
        members: Members,
        stems: StemCache | None,
        texts: Mapping[str, Tensor] | None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Accuracies of all clients [K, 4]: each rank tests its part of them, then all know all. NaN of who is not tested.

        ``watch``: takes in what all ranks see.
        """
        tested = self.tested
        mine = [evaluator.federated.clients[i] for i in self.assignment.testing(tested)]  # with their test images of its split
        own = evaluator.table(method, replace(members.answers(), texts=texts or {}), mine, stems, self.told, watch)
        if watch:
            watch.gather(self.assignment.world)
        table = torch.zeros(len(self.clients), own.shape[1], dtype=torch.float64)
        table[[client.id for client in mine]] = own
        table = self.assignment.world.sum(table.flatten(), "metrics").view(table.shape)
        return table if len(tested) == len(table) else torch.full_like(table, torch.nan).index_copy(0, torch.tensor(tested), table[tested])

    def shared_texts(self, method: Method, members: Members) -> Mapping[str, Tensor]:
        """Text features that all clients are tested with; empty if each has its own. All ranks enter."""
        if self.config.text_features == "current":
            return {}
        return self.texts.get(self.evaluator, method, members.answers(), self.clients[self.tested[0]], self.assignment)
