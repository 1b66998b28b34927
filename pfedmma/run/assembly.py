"""Wiring: from a configuration to the parts of a run, for training and for everything that reads a run afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pfedmma.accuracy.evaluator import Evaluator, Told, in_silence
from pfedmma.accuracy.zero_shot import Reference
from pfedmma.clip import loading as clip
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.fingerprint import FrozenWeights
from pfedmma.clip.stems import StemCache
from pfedmma.comm.assignment import Assignment
from pfedmma.comm.node import Nodes
from pfedmma.comm.world import World
from pfedmma.config.schema import Config
from pfedmma.data import loading as data
from pfedmma.data.fingerprint import Fingerprint, fingerprint
from pfedmma.data.partition.federated import FederatedData
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.pixels.shared import make_test_images, share_test_images
from pfedmma.data.pixels.unreadable import leave_out_unreadable
from pfedmma.data.sources.base import Source
from pfedmma.engine import participation
from pfedmma.engine.batches import Batches, LocalWork, steps
from pfedmma.engine.cohort import Members, PassWidth, largest_step
from pfedmma.engine.evaluation import Evaluation
from pfedmma.engine.graphs import Graphs
from pfedmma.engine.local import LocalTraining
from pfedmma.engine.new_clients import meet_new_clients
from pfedmma.engine.rounds import Engine
from pfedmma.methods import registry
from pfedmma.methods.base import Method
from pfedmma.methods.compiled import Compiled
from pfedmma.methods.forward import Forward
from pfedmma.methods.prompts import cut_prompts
from pfedmma.methods.zeroshot import ZeroShot
from pfedmma.records.checkpoint.manifest import Classes
from pfedmma.records.rows import NewClients
from pfedmma.records.selected import BEST_VAL
from pfedmma.run.local import refuse_local, with_controls
from pfedmma.run.server import account_of, bounds, plain_rules, server_rules
from pfedmma.run.start import start_of, widths_of
from pfedmma.server.controls import MeanControl
from pfedmma.server.privacy import Bounded
from pfedmma.server.rules import SHARED, ServerRules
from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.offload import Budget
from pfedmma.system.console import say, unsaid, warn
from pfedmma.system.errors import UserError
from pfedmma.system.memory import keep_freed_memory
from pfedmma.system.signals import Interruption

MOST_TESTED_AT_ONCE = 32  # clients of one pass in evaluation; more share no further work


@dataclass(frozen=True)
class Run:
    """The assembled parts of a run on one rank."""

    config: Config
    backbone: Backbone
    federated: FederatedData
    engine: Engine
    skipped_images: int = 0  # unreadable ones that were left out
    made_split: dict[str, Any] | None = None  # where the data came without one
    fingerprint: Fingerprint | None = None  # of the data

    @cached_property
    def classes(self) -> Classes:
        """What every checkpoint says of the classes."""
        return Classes.from_data(self.federated)

    @cached_property
    def weights(self) -> FrozenWeights:
        """What every checkpoint says of the frozen weights."""
        return FrozenWeights.from_backbone(self.backbone, self.config.backbone.pretrained)

    def zero_shot(self) -> Reference:
        """The accuracy of CLIP as it comes on the same protocol. All ranks enter.

        What it computes of test images on the way is kept for the evaluations of the run's own method.
        """
        training = self.engine.training
        method = ZeroShot.beside_method(training.method)
        stems = training.batches.stems if method.beside else None
        return Reference(*self.engine.evaluation.measured(method, new_members(method, self.config, self.engine.world), stems))

    def new_clients(self, told: Told = in_silence) -> NewClients | None:
        """What new clients reach when the rounds are over; None where there are none. All ranks enter. ``told``: how far they have come."""
        if not any(client.new for client in self.engine.clients):
            return None
        method = ZeroShot(self.backbone)
        return meet_new_clients(self.engine, (method, new_members(method, self.config, self.engine.world)), told)


def assemble(config: Config, world: World, interruption: Interruption | None = None) -> Run:
    """Build backbone, data, method and engine; ``interruption``, where there may be one, ends its rounds.

    Raises:
        UserError: anything in ``config`` that cannot be had here.
    """
    refuse_rounds_without_rate(config)
    if world.device.type == "cpu":
        keep_freed_memory()
    backbone = clip.load(config.backbone, config.seed, world.device)
    federated, pixels = data.load(config.data, config.seed, config.evaluation.split, backbone.preprocess, world)
    seen = fingerprint(pixels.source, federated)
    assignment = dealt(federated, config, world)
    parts, skipped = ready([federated, *validation_of(config, pixels.source)], pixels, config, assignment)
    federated = parts[0]
    if world.is_main and (cut := cut_prompts(backbone, federated.template, pixels.source.class_names)):
        warn(cut)
    method = registry.build(config.method, backbone)
    participants = federated.participants
    bounded = bounds(config, len(participants))
    members = new_members(method, config, world, rules=rules_of(method, config, bounded, federated, world))
    members.states.share(assignment)
    largest = largest_step((federated.clients[i] for i in participants), work_of(config))
    width = PassWidth.from_setting(config.federation.clients_per_pass, world.device, largest, method.passes)
    plain = new_training(method, federated, pixels, config, world, width.now)
    testers = [Evaluator(part, pixels, config.evaluation.batch_size, min(width.now, MOST_TESTED_AT_ONCE)) for part in parts]
    validator = testers[1] if len(testers) > 1 else None
    evaluation = Evaluation(config.evaluation, testers[0], federated.clients, participants, assignment, config.seed, validator)
    engine = Engine(
        world,
        assignment,
        federated.clients,
        participants,
        config.local.applied(plain),
        evaluation,
        members,
        config.federation,
        config.seed,
        width,
        interruption or Interruption(),
    )
    engine.account = account_of(engine, config, bounded)
    engine.fine_tuning = config.local.fine_tuning(plain)
    return Run(config, backbone, federated, engine, skipped, pixels.source.made_split, seen)


def refuse_rounds_without_rate(config: Config) -> None:
    """Raise a `UserError` if the learning rate is 0 before the last round."""
    rounds, until = config.federation.rounds, config.optimizer.cosine_rounds
    if 0 < until < rounds:
        raise UserError(
            f"optimizer.cosine_rounds: after {until} rounds the learning rate is 0, and federation.rounds is {rounds}; set at least as many"
        )


def rules_of(method: Method, config: Config, bounded: Bounded | None, federated: FederatedData, world: World) -> ServerRules:
    """The server's rules. Raises a `UserError` where settings of server, privacy or local training do not go together."""
    refuse_local(method, config)
    participants = federated.participants
    widths = widths_of(method, config, world.device)
    rules = server_rules(method, config, bounded, len(participants), widths)
    if not config.local.controls:
        return rules
    images = {i: len(federated.clients[i].train) for i in participants}
    return with_controls(rules, MeanControl.from_images(method.layout, images, world.device, widths))


def ready(parts: list[FederatedData], pixels: Pixels, config: Config, assignment: Assignment) -> tuple[list[FederatedData], int]:
    """The data without unreadable images, where these are skipped, and their number; test images are shared by a node. All ranks enter."""
    skipped, world = 0, assignment.world
    for part in parts:
        share_test_images(part, pixels, assignment.nodes)
    if config.data.on_bad_image == "skip":
        parts, skipped = leave_out_unreadable(parts, pixels, assignment)
    if config.evaluation.every and world.local_size > 1:
        for part in parts:
            make_test_images(part, pixels, world)
    return parts, skipped


def new_training(method: Method, federated: FederatedData, pixels: Pixels, config: Config, world: World, width: int) -> LocalTraining:
    """Local training on base prompts, compiled and captured as the settings say; ``width``: clients of a pass."""
    federation, told = config.federation, say if world.is_main else unsaid
    ahead = federation.rounds * steps_of_round(federated, config, world.size, width)
    compiled = Compiled.from_setting(config.backbone.compiles, world.device, federation.batch_size, ahead, told)
    forward = Forward.from_prompts(method, federated.template, federated.base.classes, compiled)
    sharing = world.local_size if world.backend == "gloo" else 1  # NCCL's ranks have a GPU each
    batches = Batches(forward, pixels, work_of(config), StemCache.from_setting(federation.stems_gb, world.device, sharing))
    return LocalTraining(method.layout, batches, graphs=Graphs.from_setting(federation.graphs, world.device))


def steps_of_round(federated: FederatedData, config: Config, ranks: int, width: int) -> int:
    """About how many local steps a rank takes in a round, ``width`` clients at a time in each."""
    participants, work = federated.participants, work_of(config)
    longest = max(steps(federated.clients[i], work) for i in participants)
    return longest * math.ceil(participation.training(len(participants), config.federation) / (ranks * width))


def work_of(config: Config) -> LocalWork:
    """What a client does in a round."""
    rounds = config.federation
    return LocalWork(rounds.local_epochs, rounds.batch_size, config.optimizer, config.seed, rounds.drop_last)


def dealt(federated: FederatedData, config: Config, world: World) -> Assignment:
    """Which rank has which clients. All ranks enter."""
    work = work_of(config)
    new = {client.id for client in federated.clients if client.new}
    return Assignment.from_work(Nodes.from_world(world), {client.id: steps(client, work) for client in federated.clients}, new)


def validation_of(config: Config, source: Source) -> list[FederatedData]:
    """The same partition with validation images in place of test images, if they select the round that is reported; else nothing.

    Raises:
        UserError: there are none.
    """
    if config.evaluation.select != BEST_VAL:
        return []
    if config.data.partition_file:
        raise UserError("evaluation.select: best_val needs validation images of each client, of which data.partition_file says nothing")
    if "val" not in source.splits:
        raise UserError(f"evaluation.select: best_val needs a validation split, which {source.name} does not have; use last")
    return [data.seen_by_clients(source, config.data, config.seed, "val")]


def new_members(method: Method, config: Config, world: World, answers: str = "", rules: ServerRules | None = None) -> Members:
    """The state in which every client of the method starts, and the server.

    ``answers``: what clients answer with; empty: as the method says. ``rules``: of the server; None: FedAvg's.
    """
    layout, start = method.layout, start_of(method, config)
    budget = Budget(config.federation.device_gb * 1e9, config.federation.host_gb * 1e9)
    answers, widths = answers or config.local.answers(method.answers), widths_of(method, config, world.device)
    states = ClientStates(layout, start, config.optimizer, world.device, budget, answers, widths, config.local.controls)
    initial = {SHARED: start.common[: layout.exchanged_size]}
    return Members(states, Server(layout, initial, world, rules or plain_rules(method, config)))
