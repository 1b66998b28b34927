"""Record what every method computes: ``python -m tests.distributed.record_numbers [METHOD ...]`` writes ``numbers.json`` beside it.

With METHODs it adds these, which are not recorded yet, and leaves all others as they are.

Three rounds of four clients, half of them at a time, on one rank and on two, in fp32: losses, accuracies, cohorts, bytes, and a hash of
each client's model at the end. `test_same_numbers` compares: to the last bit on the machine and torch that recorded them, and within
rounding anywhere else. Record anew only in a change that says which numbers it means to change, and why.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pfedmma.export import main as export
from pfedmma.methods import registry
from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

FILE = Path(__file__).with_name("numbers.json")
CLIENTS = 4
SETTINGS = [
    "backbone.pretrained=auto",
    f"data.clients={CLIENTS}",
    "federation.rounds=3",
    "federation.participation=0.5",
    "evaluation.every=1",
    "method.scale=0.01",
    "data.camera_kind=hue",  # as was the default when these numbers were recorded first
    "data.medium=0",
]


def machine() -> dict[str, str]:
    """What the last bit of a sum may depend on."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def numbers_of(folder: Path, method: str, ranks: int) -> dict[str, Any]:
    """The rounds of a run, and a hash of each client's model."""
    run = folder / f"{method}-{ranks}"
    values_of(run_ranks(folder / f"meet-{method}-{ranks}", ranks, train, small.settings(run, *SETTINGS, f"method.name={method}")))
    comm = ("shared_parameters", "payload_bytes", "uplink_bytes", "downlink_bytes", "collectives")
    rounds = [
        {name: row[name] for name in ("round", "clients", "samples", "loss")}
        | {"accuracy": measured(row["accuracy"])}
        | {name: row["comm"][name] for name in comm}
        for row in small.metrics(run)
    ]
    models = [] if method == "zeroshot" else [model_hash(run, client) for client in range(CLIENTS)]
    return {"rounds": rounds, "models": models, "zero_shot": measured(small.summary(run)["zero_shot"])}


def measured(accuracy: dict[str, Any]) -> dict[str, Any]:
    """The scores but CM, which follows from the others."""
    return {name: value for name, value in accuracy.items() if name != "cm"}


def model_hash(run: Path, client: int) -> str:
    """Of a client's exported tensors, by name."""
    file = run / f"client-{client}.safetensors"
    export([str(run), "--client", str(client), "--out", str(file)])
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def main(names: Sequence[str]) -> None:
    recorded = json.loads(FILE.read_text()) if names else {"machine": machine(), "runs": {}}
    assert recorded["machine"] == machine(), f"the others were recorded on {recorded['machine']}"
    with tempfile.TemporaryDirectory() as folder:
        for name, ranks in itertools.product(names or registry.NAMES, (1, 2)):
            assert f"{name} on {ranks}" not in recorded["runs"], f"{name} is recorded; all are recorded anew together"
            recorded["runs"][f"{name} on {ranks}"] = numbers_of(Path(folder), name, ranks)
    FILE.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
