"""What privacy.py attacks: clients that train, and what the server sees of it.

Victims are the first clients, those that the attacker simulates follow. All are trained by the project's own engine, from the server's
start. No picture of a victim is ever seen by a simulated client: victims hold pictures of the first half of each class, the others of the
second. What the server sees is what its own rules make of uploads, so clipping and noise are settings of a run like others.

Shape legend: n clients, V victims, X exchanged parameters of one client, K classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from programs import ROOT
from torch import Tensor

from pfedmma import rng
from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.config.schema import Config
from pfedmma.data.partition.camera import camera
from pfedmma.data.partition.federated import Client, held_classes
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import Source
from pfedmma.engine.cohort import train_cohort
from pfedmma.engine.rounds import Engine
from pfedmma.run.assembly import assemble
from pfedmma.run.start import start_of
from pfedmma.server.rules import SHARED, Uploads
from pfedmma.system.errors import UserError

CLASSES, SHOTS = 6, 2  # that a client holds, and its pictures of each


@dataclass(frozen=True)
class Sizes:
    """How many clients are attacked, and how many the attacker simulates."""

    victims: int
    simulated: int


def config_from(settings: Sequence[str], victims: int) -> Config:
    """``settings`` over those of the demo, for a run whose participants are as many as the victims: its server counts on them."""
    own = [
        "data.protocol=base_to_novel_dirichlet",
        "data.beta=100",
        "data.shots=0",
        f"data.clients={victims}",
        "evaluation.every=0",
        f"run_dir={Path(tempfile.gettempdir()) / 'pfedmma-privacy'}",  # which is never made
    ]
    return configuration.load([ROOT / "configs" / "demo.yaml"], [*own, *settings])


class Federation:
    """The clients of a run, before its first round. ``held`` [n,K]: which classes they hold; ``sent``: the state of the server."""

    def __init__(self, config: Config, sizes: Sizes, world: World) -> None:
        self.config, self.sizes = config, sizes
        run = assemble(config, world)
        self.engine: Engine = run.engine
        self.backbone, self.count = run.backbone, len(run.federated.base.classes)
        self.start = start_of(self.engine.training.method, config)
        self.sent = {name: tensor.clone() for name, tensor in self.engine.server.state.items()}
        self.clients = [self._client(number) for number in range(sizes.victims + sizes.simulated)]
        self.held = held_classes(self.clients, self.count)

    @property
    def victims(self) -> list[Client]:
        return self.clients[: self.sizes.victims]

    @property
    def pixels(self) -> Pixels:
        return self.engine.training.batches.pixels

    @property
    def source(self) -> Source:
        return self.pixels.source

    def pictures(self, label: int, of_victims: bool) -> Tensor:
        """Positions of the training pictures of a class that victims may hold, or that the attacker has.

        Raises:
            UserError: they are too few.
        """
        whole = (self.source.splits["train"].labels == label).nonzero().squeeze(1)
        half = len(whole) // 2
        if half < 2 * SHOTS:
            raise UserError(f"the training split has {len(whole)} pictures of a class; the attacks need {4 * SHOTS}")
        return whole[:half] if of_victims else whole[half : 2 * half]

    def _client(self, number: int) -> Client:
        """Its classes, pictures and camera follow from (seed, number)."""
        seed, data = self.config.seed, self.config.data
        generator = rng.generator(seed, "attacked", number)
        classes = tuple(sorted(torch.randperm(self.count, generator=generator)[:CLASSES].tolist()))
        own = [self.pictures(label, number < self.sizes.victims) for label in classes]
        train = torch.cat([some[torch.randperm(len(some), generator=generator)[:SHOTS]] for some in own])
        strength = self.source.cameras.get(data.camera_kind, 0.0) if data.camera == -1.0 else data.camera
        labels = torch.tensor(classes).repeat_interleave(SHOTS)
        return Client(number, classes, train, labels, train[:0], camera(seed, number, strength, data.camera_kind))

    def train(self) -> Traces:
        """Two rounds of local training: of all clients, then of the victims from what the server made of their first one."""
        engine, victims = self.engine, len(self.victims)
        rows = train_cohort(engine.training, self.clients, engine.members, 1, engine.width).uploads.clone()
        first = self.seen(rows, 1)
        engine.server.round(uploads_of(range(victims), rows[:victims], 1))
        again = train_cohort(engine.training, self.victims, engine.members, 2, engine.width).uploads.clone()
        traces = Traces(rows, first, self.seen(again, 2))
        self.restart()
        return traces

    def restart(self) -> None:
        """The server as it was before the first round."""
        self.engine.server.state = {name: tensor.clone() for name, tensor in self.sent.items()}

    def seen(self, rows: Tensor, round_: int) -> Tensor:
        """What the server sees of single uploads, as changes [n,X]; ``rows``: what clients 0, 1, ... have after training.

        Where clients add noise, as many share it as the run has participants.
        """
        server, parts = self.engine.server, []
        for ids in torch.arange(len(rows)).split(len(self.engine.participants)):
            part, uploads = rows[ids], uploads_of(ids.tolist(), rows[ids], round_)
            for transform in server.rules.transforms:
                part = transform(part, uploads, server.state)
            parts.append(part)
        sent = torch.cat(parts)
        return sent if server.rules.transforms else sent - server.shared  # rules that transform are sent changes

    def means(self, rows: Tensor, cohorts: Tensor) -> Tensor:
        """What everybody sees of a first round of each of these ``cohorts`` [c,m] of clients: how the server's tensors change [c,X].

        ``rows`` [n,X]: what clients have after training.
        """
        server, changes = self.engine.server, []
        for number, cohort in enumerate(cohorts.tolist(), 1):
            server.round(uploads_of(cohort, rows[cohort], number))  # each with noise of its own
            changes.append(server.shared - self.sent[SHARED])
            self.restart()
        return torch.stack(changes)


@dataclass(frozen=True)
class Traces:
    """What training left: exchanged tensors of all clients ``rows`` [n,X], what the server sees of them as changes ``first`` [n,X], and of
    the victims' second round ``later`` [V,X]."""

    rows: Tensor
    first: Tensor
    later: Tensor


def uploads_of(ids: Sequence[int], rows: Tensor, round_: int) -> Uploads:
    """Of clients whose exchanged tensors after training are ``rows`` [C,X]."""
    return Uploads(round_, tuple(ids), [CLASSES * SHOTS] * len(ids), tuple(ids), rows)
