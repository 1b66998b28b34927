"""The measurements of scaling.py: rounds of `Engine.run`, timed in the processes that scaling.py starts for each.

    python benchmarks/scaling_rounds.py '{"measure": "overhead", "args": {"device": "cpu", ...}}'

What a measurement finds is printed as JSON, by rank 0. All numbers of ``args`` but ``device`` are those of the ``measure_*`` functions.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch import Tensor

from pfedmma import rng
from pfedmma.comm.assignment import Assignment
from pfedmma.comm.world import DistributedConfig, World, open_world
from pfedmma.config import schema as configuration
from pfedmma.data.partition.federated import Client
from pfedmma.engine.cohort import Members
from pfedmma.engine.local import LocalTraining
from pfedmma.engine.rounds import Engine
from pfedmma.records.rows import RoundRow
from pfedmma.run.assembly import assemble
from pfedmma.server.rules import SHARED
from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import MEAN
from pfedmma.stack.start import Start
from pfedmma.system.errors import UserError, run_main

EXCHANGED, PRIVATE = 8_448, 666_112  # parameters of pFedMMA on ViT-B/16: 8 blocks of 32 x 32 + 32, and the projections around them
IMAGES = 8  # of a client, one batch, where nothing else is said


class Registered(Sequence[Client]):
    """``count`` clients, each with ``images`` training images drawn with replacement; a client is made when it is asked for."""

    def __init__(self, count: int, images: int, labels: Tensor) -> None:
        self.labels = labels
        self.rows = torch.randint(len(labels), (count, images), generator=rng.generator(0, "registered", count, images))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Client:
        rows = self.rows[index]
        return Client(index, (), rows, self.labels[rows], rows[:0])


class Idle(LocalTraining):
    """Local training that returns at once."""

    def train(self, clients: Sequence[Client], params: Tensor, *rest: Any) -> Tensor:
        return torch.ones(len(clients), device=params.device)


class Watch:
    """Seconds of every round and of its exchange; memory of this process after every ``every`` rounds."""

    def __init__(self, every: int = 0) -> None:
        self.every = every
        self.rounds: list[float] = []
        self.exchanges: list[float] = []
        self.memory: list[int] = []
        self.last = time.perf_counter()

    def round_done(self, row: RoundRow) -> None:
        self.rounds.append(time.perf_counter() - self.last)
        self.exchanges.append(row.spent("exchange"))
        if self.every and row.round % self.every == 0:
            self.memory.append(resident())
        self.last = time.perf_counter()

    def checkpoint_due(self, round_: int) -> bool:
        return False

    def save(self, round_: int) -> None:
        raise NotImplementedError


def resident() -> int:
    """Bytes of this process in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        raise UserError(
            "memory is read from /proc/self/statm, which this system does not have; measure overhead, linear or ranks"
        ) from None
    return pages * os.sysconf("SC_PAGE_SIZE")


def new_engine(world: World, device: str, registered: int, participants: int, images: int = IMAGES, width: str = "auto") -> Engine:
    """The engine of a run of pFedMMA on the tiny backbone, with ``registered`` clients instead of the source's own."""
    settings = [
        "data.clients=2",
        "data.protocol=iid",
        "data.camera=0",
        "data.medium=0",
        "federation.local_epochs=1",
        f"federation.batch_size={min(images, 16)}",
        f"federation.clients_per_pass={width}",
        "federation.stems_gb=0",
        "federation.host_gb=0.05",
        "evaluation.every=0",
        f"distributed.device={device}",
    ]
    engine = assemble(configuration.load(None, settings), world).engine
    take_part(engine, registered, participants, images)
    return engine


def take_part(engine: Engine, registered: int, participants: int, images: int = IMAGES) -> None:
    """From now on ``participants`` of ``registered`` clients train in a round."""
    engine.clients = Registered(registered, images, engine.training.batches.pixels.source.splits["train"].labels)
    engine.participants = range(registered)
    engine.assignment = Assignment.from_work(engine.assignment.nodes, dict.fromkeys(range(registered), 1))
    engine.states.share(engine.assignment)
    engine.federation = dataclasses.replace(engine.federation, participation=participants / registered)


def work(engine: Engine, first: int, rounds: int, every: int = 0) -> Watch:
    """Rounds ``first`` and on."""
    engine.federation = dataclasses.replace(engine.federation, rounds=first + rounds - 1)
    watch = Watch(every)
    engine.run(first, watch)
    return watch


def idle(engine: Engine) -> None:
    """Take the local training out of the engine's rounds."""
    engine.training = Idle(engine.training.layout, engine.training.batches)


def measure_overhead(world: World, device: str, registered: int, participants: int, warmup: int, rounds: int) -> dict[str, Any]:
    engine = new_engine(world, device, registered, participants)
    layout, batches = Layout({"shared": (EXCHANGED,), "own": (PRIVATE,)}, {"shared": MEAN}), engine.training.batches
    states = ClientStates(layout, Start(torch.zeros(layout.size)), batches.work.optimizer, world.device)
    states.share(engine.assignment)
    engine.members = Members(states, Server(layout, {SHARED: torch.zeros(EXCHANGED)}, world))
    engine.training = Idle(layout, batches)
    work(engine, 1, warmup)
    watch = work(engine, warmup + 1, rounds)
    times = np.array(watch.rounds) * 1e3
    found = {"round_ms_p50": float(np.median(times)), "round_ms_p95": float(np.quantile(times, 0.95)), "round_ms_least": float(times.min())}
    return found | {"exchange_ms_p50": 1e3 * statistics.median(watch.exchanges), "clients_with_state": len(engine.states.own)}


def measure_linear(world: World, device: str, points: list[list[int]], width: int, turns: int) -> dict[str, Any]:
    most = max(participants for participants, _ in points)
    engine = new_engine(world, device, most, most, max(images for _, images in points), str(width))
    times: list[list[float]] = [[] for _ in points]
    for turn in range(turns + 1):
        for (participants, images), found in zip(points, times, strict=True):
            take_part(engine, most, participants, images)
            took = work(engine, 1 + turn, 1).rounds[0]
            if turn > 0:  # the first turn draws images and asks for memory
                found.append(took)
    return {"seconds": times}


def measure_registered(world: World, device: str, registered: int, participants: int, rounds: int) -> dict[str, Any]:
    engine = new_engine(world, device, registered, participants)
    warmup = 3
    work(engine, 1, warmup)
    watch = work(engine, warmup + 1, rounds)
    memory, kept = resident(), engine.states.own.bytes_by_place()
    idle(engine)
    without = work(engine, warmup + rounds + 1, 5 * rounds)
    return {
        "round_s": statistics.median(watch.rounds),
        "round_without_training_ms": 1e3 * statistics.median(without.rounds),
        "resident_bytes": memory,
        "state_bytes": kept,
    }


def measure_long(world: World, device: str, registered: int, participants: int, rounds: int, every: int) -> dict[str, Any]:
    engine = new_engine(world, device, registered, participants)
    watch = work(engine, 1, rounds, every)
    memory = torch.zeros(world.size, len(watch.memory), dtype=torch.float64)
    memory[world.rank] = torch.tensor(watch.memory, dtype=torch.float64)
    kept = engine.states.own.bytes_by_place()
    return {"round_s": watch.rounds, "resident_bytes": world.sum(memory, "memory").tolist(), "state_bytes_rank_0": kept}


def measure_ranks(world: World, device: str, registered: int, participants: int, rounds: int) -> dict[str, Any]:
    engine = new_engine(world, device, registered, participants)
    work(engine, 1, 2)
    watch = work(engine, 3, rounds)
    share = statistics.median(a / b for a, b in zip(watch.exchanges, watch.rounds, strict=True))
    return {
        "round_s": statistics.median(watch.rounds),
        "exchange_ms": 1e3 * statistics.median(watch.exchanges),
        "exchange_share": share,
    }


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "overhead": measure_overhead,
    "linear": measure_linear,
    "registered": measure_registered,
    "long": measure_long,
    "ranks": measure_ranks,
}


def main() -> None:
    job = json.loads(sys.argv[1])
    world = open_world(DistributedConfig(device=job["args"]["device"]))
    found = MEASURES[job["measure"]](world, **job["args"])
    if world.is_main:
        print(json.dumps({"found": found, "machine": machine(world.device, "open_clip", "accelerate")}), flush=True)
    world.close()


if __name__ == "__main__":
    run_main(main)
