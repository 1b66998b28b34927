"""Memory that runs out, anywhere in a run, on a GPU or not: one sentence that says what to lower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pfedmma import evaluate
from pfedmma.accuracy import evaluator
from pfedmma.data.pixels import pixels
from pfedmma.engine import batches, local
from pfedmma.run import assembly
from pfedmma.server import server
from pfedmma.system.errors import RankFailure
from pfedmma.train import main
from tests.support import small

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nGPU 0 has a total capacity of 8 GiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)
EVERYWHERE = r"^out of memory \(.+\); lower federation.batch_size, evaluation.batch_size, federation.clients_per_pass, "


def raising(error: BaseException) -> Any:
    def function(*args: Any, **options: Any) -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (assembly.clip, "load", MemoryError()),
        (evaluator.Evaluator, "_correct", GPU),
        (evaluator.Evaluator, "_image_stem", CPU),
        (pixels.Pixels, "stage", CPU),  # in the thread that prepares batches
        (pixels.Pixels, "stage", MemoryError()),
        (batches.Batches, "whole_stem", CPU),
        (server.Server, "round", GPU),
    ],
    ids=["load", "evaluation", "stem of test images", "batches", "batches, Python", "stem of training images", "exchange"],
)
def test_wherever_it_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException) -> None:
    monkeypatch.setattr(owner, name, raising(error))
    more = (f"evaluation.every={int(owner is evaluator.Evaluator)}", f"data.augment={'none' if name == 'whole_stem' else 'crop'}")
    with pytest.raises(RankFailure, match=EVERYWHERE):
        main(small.settings(tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_one_client_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.LocalTraining, "step", raising(GPU))
    with pytest.raises(RankFailure, match=r"^out of memory with 1 clients? in a pass; lower federation.batch_size or federation.stems_gb$"):
        main(small.settings(tmp_path / "run", "federation.clients_per_pass=1"))


def test_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(small.settings(tmp_path / "run", "federation.rounds=1"))
    monkeypatch.setattr(evaluator.Evaluator, "_correct", raising(GPU))
    with pytest.raises(RankFailure, match=EVERYWHERE):
        evaluate.main([str(tmp_path / "run")])
