"""Clients that come when the last round is over: each receives what the server has, and trains alone for some epochs.

They are tested on the way, once with the exchanged tensors as they were received (frozen) and once with these trained as well (free), with
the same batches. It is one training of the longest wanted length with a fresh optimizer, so 5 epochs are the first 5 of 20, and every draw
is keyed by the seed, the client and the epoch. The run's own clients and its server are read and not changed.

Shape legend: N new clients, P parameters of one client, T of them trained, X of these exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfedmma.accuracy.evaluator import FREE, FROZEN, Told, in_silence
from pfedmma.accuracy.metrics import COLUMNS, summarise
from pfedmma.clip.stems import StemCache
from pfedmma.comm.world import WIRE_DTYPES
from pfedmma.data.partition.federated import Client
from pfedmma.engine import participation
from pfedmma.engine.batches import steps
from pfedmma.engine.cohort import Members, train_cohort
from pfedmma.engine.local import AFTER_THE_ROUNDS, AfterStep, counted
from pfedmma.engine.rounds import Engine
from pfedmma.methods.base import Method
from pfedmma.records.rows import Accuracy, NewClients, NewClientsRow
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.offload import Budget
from pfedmma.system.errors import UserError
from pfedmma.system.fields import finite

RECEIVED, PRIVATE_MEAN = "new_clients", "new_clients_private_mean"  # purposes in the ledger


class Interrupted(UserError):
    """A rank was asked to end; all ranks raise it at the same place."""


def meet_new_clients(engine: Engine, reference: tuple[Method, Members], told: Told = in_silence) -> NewClients:
    """Let the new clients come. All ranks enter.

    Args:
        reference: zero-shot CLIP, and the state of its clients. told: how many steps of this rank's new clients are done, of how many.

    Raises:
        Interrupted: any rank was asked to end.
    """
    group = Group.from_engine(engine)
    zero_shot = group.table(*reference)
    start = starting(engine, group.ids)
    at_once = group.table_of(start)
    exchanged, lengths = engine.training.layout.exchanged_size, sorted(engine.evaluation.config.new_clients_epochs)
    first_trained = {FROZEN: exchanged, FREE: 0}
    wanted = {way: first_trained[way] for way in engine.evaluation.config.new_clients_shared}
    # Where nothing is exchanged, frozen and free are the same; what is not trained stays as it began.
    found: dict[int, dict[int, Tensor]] = {}
    for first in dict.fromkeys(wanted.values()):
        found[first] = {k: group.table_of(states) for k, states in train_alone(group, start, first, lengths, told).items()}
    rows = [group.row(way, k, found[first].get(k, at_once)) for way, first in wanted.items() for k in lengths]
    return NewClients(
        ids=tuple(group.ids),
        start=engine.evaluation.config.new_clients_start,
        zero_shot=group.summarise(zero_shot),
        rows=tuple(rows),
        bytes=dict(engine.world.ledger.apart),
    )


@dataclass(frozen=True)
class Group:
    """The new clients that are tested: the ``ids`` of all, and this rank's ``own``: without a state yet, they are dealt to all ranks."""

    engine: Engine
    ids: Sequence[int]
    own: Sequence[Client]

    @classmethod
    def from_engine(cls, engine: Engine) -> Group:
        new = [client.id for client in engine.clients if client.new]
        ids = participation.tested(new, engine.evaluation.config.clients, engine.seed)
        return cls(engine, ids, [engine.clients[i] for i in engine.assignment.starting(ids)])

    def table_of(self, states: ClientStates) -> Tensor:
        """Accuracies [N, 4] of these states of the run's method. All ranks enter."""
        engine, training = self.engine, self.engine.training
        texts = engine.evaluation.shared_texts(training.method, engine.members)
        return self.table(training.method, Members(states, engine.server), training.batches.stems, texts)

    def table(self, method: Method, members: Members, stems: StemCache | None = None, texts: Mapping[str, Tensor] | None = None) -> Tensor:
        """Accuracies [N, 4]: each rank tests its own, then all know all.

        All ranks enter, and raise `Interrupted` if any was asked to end.
        """
        engine = self.engine
        answers = replace(members.answers(), texts=texts or {})
        own = engine.evaluation.evaluator.table(method, answers, self.own, stems, engine.evaluation.told)
        table = torch.zeros(len(self.ids), len(COLUMNS), dtype=torch.float64)
        table[[self.ids.index(client.id) for client in self.own]] = own
        asked = torch.tensor([float(engine.interruption.asked)], dtype=torch.float64)
        flat, interrupted = engine.world.sum(torch.cat([table.flatten(), asked]), RECEIVED).split([table.numel(), 1])
        if float(interrupted) > 0:
            raise Interrupted("interrupted while new clients were trained and tested; the same command does that again")
        return flat.view(table.shape)

    def summarise(self, table: Tensor) -> Accuracy:
        """Averages of a table over the new clients, and over their domains if they have any."""
        return summarise(table, [self.engine.clients[i].domain for i in self.ids])

    def row(self, way: str, epochs: int, table: Tensor) -> NewClientsRow:
        """What is recorded of a table."""
        each = tuple(dict(zip(COLUMNS, map(finite, values), strict=True)) for values in table.tolist())
        return NewClientsRow(way, epochs, self.summarise(table), each)


def starting(engine: Engine, ids: Sequence[int]) -> ClientStates:
    """The state in which new clients start, after what they receive is counted. All ranks enter."""
    server, ledger, wire = engine.server, engine.world.ledger, WIRE_DTYPES[engine.server.rules.wire].itemsize
    received = sum(map(engine.states.exchanged_size, ids)) + server.read_parameters(ids)
    ledger.move(RECEIVED, uplink_bytes=0, downlink_bytes=received * wire)
    private = mean_private(engine, len(ids)) if engine.evaluation.config.new_clients_start == "mean" else None
    return engine.states.for_newcomers(_budget(engine, 1), private)


def mean_private(engine: Engine, receivers: int) -> Tensor | None:
    """The mean of the private tensors [T - X] of all clients that took part in a round, weighted by images; None if there are none.

    In a real federation each of them would send its private tensors once more, and each new client receive the mean: counted apart.
    All ranks enter.
    """
    states, world, columns = engine.states, engine.world, engine.training.layout.private
    width = columns.stop - columns.start
    if width == 0:
        return None
    own = [engine.clients[i] for i in engine.participants if engine.assignment.keeps(i) and i in states.own]
    counts = torch.tensor([sum(len(client.train) for client in own), len(own)], dtype=torch.float64)
    images, senders = world.sum(counts, PRIVATE_MEAN).tolist()
    if senders == 0:
        return None
    mean = torch.zeros(width, dtype=torch.float64, device=states.device)
    for client in own:
        mean += len(client.train) / images * states.gather([client.id], engine.server.shared)[0, columns].double()
    wire = WIRE_DTYPES[engine.server.rules.wire]
    world.ledger.move(PRIVATE_MEAN, int(senders) * width * wire.itemsize, receivers * width * wire.itemsize)
    return world.sum(mean.to(wire), PRIVATE_MEAN).float()


def train_alone(group: Group, start: ClientStates, first: int, lengths: Sequence[int], told: Told = in_silence) -> dict[int, ClientStates]:
    """Train this rank's clients from ``start`` on, the columns from ``first`` on.

    Returns:
        Their states after each number of epochs in ``lengths`` (ascending) that changes anything.
    """
    engine, epochs = group.engine, lengths[-1]
    if epochs == 0 or first == engine.training.layout.trained_size:
        return {}
    kept = {k: start.for_newcomers(_budget(engine, len(lengths))) for k in lengths if k}
    alone = engine.training.alone(slice(first, engine.training.layout.trained_size), epochs)
    # The last state is kept by the cohort, when a pass is done: one that runs out of memory begins again with what is there.
    on_the_way = {k: states for k, states in kept.items() if k < epochs}
    keep = keeping(on_the_way, {client.id: steps(client, alone.batches.work) for client in group.own}, epochs, told)
    trained = replace(alone, after_step=keep)
    train_cohort(trained, group.own, Members(kept[epochs], engine.server), AFTER_THE_ROUNDS, engine.width)
    return kept


def keeping(kept: dict[int, ClientStates], steps: dict[int, int], epochs: int, told: Told) -> AfterStep:
    """Keeps the state of each client when it has done as many of its ``epochs`` as ``kept`` asks for; ``steps``: those of all of them."""
    count = counted(told, sum(steps.values()))

    def keep(number: int, clients: Sequence[Client], params: Tensor) -> None:
        for row, client in zip(params, clients, strict=True):
            epoch, more = divmod(number + 1, steps[client.id] // epochs)
            if more == 0 and epoch in kept:
                kept[epoch].scatter([client.id], row[None])
        count(number, clients, params)

    return keep


def _budget(engine: Engine, stores: int) -> Budget:
    """Memory for one of so many stores beside the run's own."""
    return Budget(engine.federation.device_gb * 1e9, engine.federation.host_gb * 1e9).share(1 / stores)
