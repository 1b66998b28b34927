"""The meter of one rank: a reading for each collective, under the part of the run that it is in."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pfedmma import train
from pfedmma.comm.world import World
from pfedmma.engine.evaluation import Evaluation
from pfedmma.engine.rounds import Engine
from pfedmma.run.recorder import Recorder
from tests.benchmarks.programs import LIMIT, ROOT
from tests.support import small

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("meter")


def test_a_reading_belongs_to_the_part_of_the_run_that_it_is_in(meter: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Counters are files here, which every collective raises by 100."""
    counted = 5  # before the first collective

    def sum_(world: World, flat: torch.Tensor, purpose: str) -> torch.Tensor:
        nonlocal counted
        counted += 100
        for name in meter.COUNTERS:
            (tmp_path / name).write_text(f"{counted}\n")
        return flat

    world = World(0, 1, torch.device("cpu"))
    monkeypatch.setattr(World, "sum", sum_)
    monkeypatch.setattr(Evaluation, "measured", lambda evaluation: world.sum(torch.zeros(4, dtype=torch.float64), "metrics"))
    monkeypatch.setattr(Engine, "run", lambda evaluation: (evaluation.measured(), world.sum(torch.zeros(9), "exchange")))
    monkeypatch.setattr(Recorder, "save", lambda recorder: world.wait("checkpoint"))
    reader = meter.Meter(0.0, tmp_path)
    reader.attach()
    world.wait("start")
    Engine.run(SimpleNamespace(measured=lambda: Evaluation.measured(None)))
    Recorder.save(None)
    found = [(r.phase, r.purpose, r.payload, r.rx_bytes) for r in reader.readings]
    assert found == [
        ("startup", "start", 4, 105),
        ("evaluation", "metrics", 32, 100),
        ("rounds", "exchange", 36, 100),
        ("checkpoint", "checkpoint", 4, 100),
    ]


def test_every_part_of_a_real_run_is_told_apart(meter: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for owner, method in ((World, "sum"), (Engine, "run"), (Evaluation, "measured"), (Recorder, "save")):
        monkeypatch.setattr(owner, method, getattr(owner, method))  # put back afterwards
    for name in meter.COUNTERS:
        (tmp_path / name).write_text("7\n")
    reader = meter.Meter(0.0, tmp_path)
    reader.attach()
    small.few_images(monkeypatch)
    settings = ["data.clients=2", "data.shots=1", "federation.rounds=2", "federation.local_epochs=1", "evaluation.every=1"]
    train.main([*settings, "checkpoint.every=1", "distributed.device=cpu", f"run_dir={tmp_path / 'run'}"])
    rounds = 2 * [("rounds", "metrics"), ("rounds", "exchange"), ("evaluation", "metrics"), *3 * [("checkpoint", "checkpoint")]]
    found = [(reading.phase, reading.purpose) for reading in reader.readings]
    assert found[found.index(("rounds", "metrics")) :] == rounds
    assert ("startup", "start") in found and {phase for phase, _ in found} < set(meter.PHASES)
