"""``summary.json``: what a finished run came to."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy
import torch

from pfedmma.accuracy.zero_shot import Reference
from pfedmma.comm.world import WIRE_DTYPES
from pfedmma.config.identity import settings
from pfedmma.methods import registry
from pfedmma.methods.base import Method
from pfedmma.methods.promptfl import PromptFL, PromptFLConfig
from pfedmma.records import lost
from pfedmma.records.communication import RunComm
from pfedmma.records.origin import Throughput
from pfedmma.records.rows import COLUMNS, IN_HM, ClientResult, NewClients, RoundRow, RunSummary
from pfedmma.run.assembly import Run
from pfedmma.system.fields import finite, known_sum
from pfedmma.version import VERSION


def build_summary(run: Run, zero_shot: Reference, rounds: Sequence[RoundRow], new_clients: NewClients | None = None) -> RunSummary:
    """Final accuracy, the zero-shot reference, per-client numbers, communication and throughput; new clients apart from all of these."""
    config, engine = run.config, run.engine
    layout, method, work = engine.training.layout, engine.training.method, engine.training.batches.work
    received = method.received(len(engine.participants) - 1)  # once every other client has something to read
    wire_bytes = WIRE_DTYPES[config.distributed.wire].itemsize
    keys = known_sum(row.comm.key_exchange_bytes_modelled for row in rounds)
    return RunSummary(
        method=config.method.name,
        dataset=config.data.name,
        protocol=config.data.protocol,
        backbone=config.backbone.name,
        precision=config.backbone.precision,
        seed=config.seed,
        skipped_images=run.skipped_images,
        rounds=config.federation.rounds,
        world_size=engine.world.size,
        device=engine.world.device.type,
        accuracy=engine.evaluation.reported[0],
        zero_shot=zero_shot.accuracy,
        per_client=per_client(run, zero_shot),
        trained_parameters=layout.trained_count,
        shared_parameters=layout.exchanged_size,
        bytes_per_client_round=engine.server.exchanged * wire_bytes,
        bytes_down_per_client_round=(received + engine.server.exchanged - layout.exchanged_size) * wire_bytes,
        alternatives=alternatives(run, wire_bytes),
        comm=RunComm(**engine.world.ledger.totals(), key_exchange_bytes_modelled=keys),
        throughput=throughput(rounds, {client.id: work.epochs * work.images(client) for client in engine.clients}),
        versions=versions(),
        config=settings(config),
        split=config.evaluation.split,
        selected=None if engine.evaluation.best is None else engine.evaluation.best.selected,
        new_clients=new_clients,
        privacy=rounds[-1].privacy if rounds else None,
        lost=lost.together(row.lost for row in rounds),
        simulated_seconds=known_sum(row.simulated_seconds for row in rounds),
    )


def alternatives(run: Run, wire_bytes: int) -> dict[str, int]:
    """Bytes each way, a client and round, of what might travel instead: all adapters (as wide as the run's), one prompt.

    No prompt is learned on a backbone whose prompts are not CLIP's.
    """
    own = run.config.method
    config = own if registry.entry_of(own.name).adapters else registry.MethodConfig()
    others: dict[str, Method] = {
        "all adapters": registry.build(replace(config, name="fedavg_mma", exchange=(), freeze=()), run.backbone),
    }
    if run.backbone.has_clips_tokenizer:
        others["one prompt"] = PromptFL.from_settings(PromptFLConfig(), run.backbone)
    return {name: method.layout.exchanged_size * wire_bytes for name, method in others.items()}


def per_client(run: Run, zero_shot: Reference) -> tuple[ClientResult, ...]:
    """What each participant holds and reaches; accuracies of CLIP as it comes are None where nobody knows them."""
    reference = None if zero_shot.table is None else zero_shot.table.tolist()
    table = run.engine.evaluation.reported[1]
    rows = []
    for client in run.federated.clients:
        if client.new:
            continue
        held = tuple(run.federated.base.classes[label] for label in client.classes)
        values = [None] * len(COLUMNS) if table is None else map(finite, table[client.id].tolist())
        scores = dict(zip(COLUMNS, values, strict=True))
        known = None if reference is None else dict(zip(IN_HM, map(finite, reference[client.id][: len(IN_HM)]), strict=True))
        rows.append(ClientResult(client.id, client.domain, held, len(client.train), len(client.test), scores, known))
    return tuple(rows)


def throughput(rounds: Sequence[RoundRow], images_of: Mapping[int, int]) -> Throughput:
    """Training images a second over all ranks, and seconds a round, over all rounds but the first (which warms up).

    ``images_of``: client -> the images that it trains on in a round.
    """
    rows = rounds[1:] or rounds
    images = sum(images_of[client] for row in rows for client in row.clients)
    spent = sum(row.spent("train", "wait") for row in rows)
    total = sum(row.spent("total") for row in rows)
    return Throughput(images / spent if spent else 0.0, total / len(rows) if rows else 0.0)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    import accelerate
    import open_clip
    import torchvision

    modules = {m.__name__: m.__version__ for m in (torch, torchvision, open_clip, accelerate, numpy)}
    return {"python": platform.python_version(), "pfedmma": VERSION} | modules
