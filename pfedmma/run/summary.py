"""``summary.json``: what a finished run came to."""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import Any

import accelerate
import numpy
import open_clip
import torch
import torchvision

import pfedmma
from pfedmma.accuracy.metrics import COLUMNS
from pfedmma.accuracy.zero_shot import Reference
from pfedmma.comm.world import WIRE_DTYPES
from pfedmma.config.identity import settings
from pfedmma.methods import registry
from pfedmma.methods.pfedmma import PRESETS
from pfedmma.methods.promptfl import PromptFL, PromptFLConfig
from pfedmma.run.assembly import Run
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import POOL


def build_summary(run: Run, zero_shot: Reference, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Final accuracy, the zero-shot reference, per-client numbers, communication and throughput."""
    config, engine = run.config, run.engine
    layout, method = engine.trainer.layout, engine.trainer.method
    pooled = layout.columns.get(POOL, slice(0, 0))
    # What a client is sent once every other client has something to read.
    received = layout.exchanged_size + min(method.reads, len(run.federated.clients) - 1) * (pooled.stop - pooled.start)
    wire_bytes = WIRE_DTYPES[config.distributed.wire].itemsize
    return {
        "method": config.method.name,
        "dataset": config.data.name,
        "protocol": config.data.protocol,
        "backbone": config.backbone.name,
        "precision": config.backbone.precision,
        "seed": config.seed,
        "skipped_images": run.skipped_images,
        "rounds": config.federation.rounds,
        "world_size": engine.world.size,
        "device": engine.world.device.type,
        "accuracy": None if engine.table is None else engine.summarise(engine.table),
        "zero_shot": zero_shot.accuracy,
        "per_client": per_client(run, zero_shot),
        "trained_parameters": layout.size,
        "shared_parameters": layout.exchanged_size,
        "bytes_per_client_round": layout.exchanged_size * wire_bytes,
        "bytes_down_per_client_round": received * wire_bytes,
        "alternatives": alternatives(run, wire_bytes),
        "comm": engine.world.ledger.totals(),
        "throughput": throughput(metrics, config.federation.local_epochs),
        "versions": versions(),
        "config": settings(config),
    }


def alternatives(run: Run, wire_bytes: int) -> dict[str, int]:
    """Bytes each way, a client and round, of what might travel instead: all adapters (as wide as the run's), one prompt."""
    config = run.config.method if run.config.method.name in PRESETS else registry.MethodConfig()
    others = {
        "all adapters": registry.build(replace(config, name="fedavg_mma", exchange=""), run.backbone),
        "one prompt": PromptFL.of(PromptFLConfig(), run.backbone),
    }
    return {name: Layout(method.shapes, method.exchange).exchanged_size * wire_bytes for name, method in others.items()}


def per_client(run: Run, zero_shot: Reference) -> list[dict[str, Any]]:
    """id, names of the classes held, sizes and accuracies of each client; those of CLIP as it comes are None where nobody knows them."""
    reference = None if zero_shot.table is None else zero_shot.table.tolist()
    rows = []
    for client in run.federated.clients:
        held = [run.federated.base.classes[label] for label in client.classes]
        row = {"id": client.id, "domain": client.domain, "classes": held}
        row |= {"train_samples": len(client.train), "test_samples": len(client.test)}
        values = [None] * len(COLUMNS) if run.engine.table is None else run.engine.table[client.id].tolist()
        known = None if reference is None else dict(zip(COLUMNS[:3], reference[client.id][:3], strict=True))
        rows.append(row | dict(zip(COLUMNS, values, strict=True)) | {"zero_shot": known})
    return rows


def throughput(metrics: list[dict[str, Any]], epochs: int) -> dict[str, float]:
    """Training images a second over all ranks, and seconds a round, over all rounds but the first (which warms up)."""
    rows = metrics[1:] or metrics
    images = sum(row["samples"] for row in rows) * epochs
    spent = sum(row["seconds"]["train"] + row["seconds"].get("wait", 0.0) for row in rows)
    total = sum(row["seconds"]["total"] for row in rows)
    return {
        "train_images_per_second": images / spent if spent else 0.0,
        "seconds_per_round": total / len(rows) if rows else 0.0,
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    modules = {m.__name__: m.__version__ for m in (pfedmma, torch, torchvision, open_clip, accelerate, numpy)}
    return {"python": platform.python_version()} | modules
