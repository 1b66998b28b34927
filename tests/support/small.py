"""Runs that take a second: their settings, and what is read back from their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pfedmma.data.sources import shapes
from pfedmma.records.checkpoint import manifest, read

PATIENCE = 1500.0  # seconds for what a test waits for: a quiet machine needs a hundredth, and only what hangs takes as long

# Random weights serve as well as trained ones wherever a test compares runs. Strong adapters and a large step make every
# client's state visible in the losses. 60 base classes over 7 clients are six runs of 9 and one of 6 classes: 18 and 12 images.
SETTINGS = [
    "backbone.pretrained=none",
    "data.clients=7",
    "data.shots=2",
    "method.scale=0.1",
    "optimizer.lr=0.01",
    "federation.rounds=2",
    "federation.local_epochs=1",
    "federation.participation=0.4",
    "federation.batch_size=8",
    "evaluation.every=0",
]


RANKS_DRAW = {"train": 8, "val": 1, "test": 1}  # drawings of a class in each split, in processes that tests start


def few_images(monkeypatch: pytest.MonkeyPatch, train: int = 4, val: int = 1, test: int = 1) -> None:
    """So many drawings of a class in each split, in this process: a test of all of them takes seconds where accuracies do not matter."""
    for split, count in {"train": train, "val": val, "test": test}.items():
        monkeypatch.setitem(shapes.PER_CLASS, split, count)


def settings(run_dir: Path, *more: str) -> list[str]:
    """The small run in ``run_dir``, with ``more`` settings that take precedence."""
    return [*SETTINGS, f"run_dir={run_dir}", *more]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def timeless(value: Any) -> Any:
    """Metrics or a summary without what the clock put there, and by which command."""
    clock = {"seconds", "time_us", "time_us_p50", "time_us_p95", "algbw_gb_per_s", "busbw_gb_per_s", "throughput", "origin"}
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in clock}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def final_tensors(run_dir: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint: "initial", "server.<name>", "<client id>.private", "<client id>.optimizer.<name>"."""
    root = run_dir / "checkpoints"
    newest = manifest.read_manifest(manifest.folder_of(root, manifest.rounds(root)[0]))
    rows = read.read_rows(root, newest, range(100))
    return {row.kind if row.client is None else f"{row.client}.{row.kind}": row.tensor for row in rows}


def assert_same_tensors(run_dir: Path, other: Path) -> None:
    """The two runs ended with the same shared and private tensors, up to the order of fp32 sums."""
    tensors, wanted = final_tensors(run_dir), final_tensors(other)
    assert tensors.keys() == wanted.keys()
    for name in wanted:
        # A momentum is a sum of gradients, some of which nearly cancel out: what rounding leaves goes with the largest. A control variate
        # is a difference of weights by the steps and the rate between them, 0.01 here: so is what rounding leaves of the weights.
        of_gradients = ".optimizer." in name or name.endswith(".control")
        atol = 2e-5 * max([1.0, *wanted[name].abs().flatten().tolist()]) if of_gradients else 1e-6
        torch.testing.assert_close(tensors[name], wanted[name], rtol=1e-4, atol=atol)


def write_caltech(root: Path, classes: int = 4, train: int = 2) -> Path:
    """A few flat pictures in CoOp's layout of Caltech-101, with its real names; returns the image folder."""
    folder = root / "caltech-101"
    images = folder / "101_ObjectCategories"
    parts: dict[str, list[list[object]]] = {"train": [], "val": [], "test": []}
    for label in range(classes):
        name = ("accordion", "airplane", "anchor", "ant", "barrel", "bass", "beaver", "binocular")[label]
        (images / name).mkdir(parents=True)
        for number, part in enumerate(["train"] * train + ["val", "test", "test"], start=1):
            file = f"{name}/image_{number:04d}.jpg"
            Image.new("RGB", (40, 36 + number), (30 * label, 40 * number, 90)).save(images / file)
            parts[part].append([file, label, name])
    (folder / "split_zhou_Caltech101.json").write_text(json.dumps(parts))
    return images
