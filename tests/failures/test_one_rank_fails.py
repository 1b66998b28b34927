"""What goes wrong on one rank alone: it says so at once, and the others end and name it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pfedmma.accuracy import evaluator
from pfedmma.engine import local, participation
from pfedmma.engine import rounds as engine_rounds
from pfedmma.engine.federation import FederationConfig
from pfedmma.records.checkpoint import manifest, write
from pfedmma.system import errors as errors_module
from pfedmma.system import files
from tests.support import small
from tests.support.ranks import Ended, run_ranks, train, values_of

NAN = "the training loss of client {client} in round 2, batch 2 is nan; lower optimizer.lr, or set optimizer.clip"
OOM = "out of memory (CUDA out of memory. Tried to allocate 9.00 GiB.); lower federation.batch_size, evaluation.batch_size, "


def errors(ended: Ended) -> list[str]:
    assert ended.status == 2 and "Traceback" not in ended.stderr, ended.stderr
    return [line for line in ended.stderr.splitlines() if line.startswith("error:")]


def loss_is_nan(round_: int, batch: int) -> None:
    """The first client of the stack loses its way."""
    real_cohort, real_step, rounds, steps = engine_rounds.train_cohort, local.LocalTraining.step, 0, 0

    def train_cohort(*args: Any) -> Any:
        nonlocal rounds, steps
        rounds, steps = rounds + 1, 0
        return real_cohort(*args)

    def step(*args: Any) -> torch.Tensor:
        nonlocal steps
        losses, steps = real_step(*args), steps + 1
        if (rounds, steps) == (round_, batch):
            losses[0] = float("nan")
        return losses

    engine_rounds.train_cohort, local.LocalTraining.step = train_cohort, step


def disk_is_full(checkpoint_: int) -> None:
    """Of this rank's node alone, when it writes its part."""
    real, calls = write._write_shard, 0

    def no_room(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_shard(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == checkpoint_:
            files.os.fsync = no_room
        real(*args)

    write._write_shard = write_shard


def memory_is_out() -> None:
    """In the second evaluation; the first is the zero-shot reference."""
    real, calls = evaluator.Evaluator._correct, 0

    def correct(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return real(*args)

    evaluator.Evaluator._correct = correct


def train_and_fail(meeting: list[str], settings: list[str], victim: int, happens: Callable[..., None], *args: int) -> None:
    if int(os.environ["RANK"]) == victim:
        happens(*args)
        errors_module.time = SimpleNamespace(sleep=cannot_sleep)
    train(meeting, settings)


def cannot_sleep(seconds: float) -> None:
    raise AssertionError("it waits for rank 0 to speak")


def fails(tmp_path: Path, victim: int, purpose: str, happens: Callable[..., None], *args: int, more: tuple[str, ...] = ()) -> str:
    """Start two ranks, of which one fails. Returns what it says; the other one must say that it waited for it in ``purpose``."""
    settings = small.settings(tmp_path / "run", "federation.rounds=3", "checkpoint.every=1", *more)
    ended = run_ranks(tmp_path / "meet", 2, train_and_fail, settings, victim, happens, *args)
    (said,), (others,) = errors(ended[victim]), errors(ended[1 - victim])
    assert f"rank {1 - victim} waited in '{purpose}' for rank {victim} (" in others
    return said


@pytest.mark.parametrize("victim", [0, 1])
def test_loss_is_nan(tmp_path: Path, victim: int) -> None:
    said = fails(tmp_path, victim, "metrics", loss_is_nan, 2, 2)
    assert [row["round"] for row in small.metrics(tmp_path / "run")] == [1]
    cohort_of_2 = participation.sample(range(7), FederationConfig(participation=0.4), seed=0, round_=2)
    assert cohort_of_2 == [4, 5, 6]  # of 3, 3 and 2 steps: the shortest joins the first
    assert said in [f"error: {NAN.format(client=i)}" for i in ([4, 6], [5])[victim]]


def test_every_loss_is_nan(tmp_path: Path) -> None:
    """Of a learning rate that is far too high, on both ranks."""
    ended = run_ranks(tmp_path / "meet", 2, train, small.settings(tmp_path / "run", "optimizer.lr=1e30"))
    for rank in (0, 1):
        (said,) = errors(ended[rank])
        assert ("of client " in said and " in round 1" in said) or f"for rank {1 - rank} (" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_disk_is_full(tmp_path: Path, victim: int) -> None:
    said = fails(tmp_path, victim, "checkpoint", disk_is_full, 1 + victim)
    assert said.startswith(f"error: cannot write {tmp_path}/run/checkpoints/.draft-") and said.endswith(": No space left on device")
    assert manifest.rounds(tmp_path / "run" / "checkpoints") == ([1] if victim else [])
    for folder in (tmp_path / "run", tmp_path / "unbroken"):
        values_of(run_ranks(tmp_path / f"meet-{folder.name}", 2, train, small.settings(folder, "federation.rounds=3", "resume=auto")))
    assert small.timeless(small.metrics(tmp_path / "run")) == small.timeless(small.metrics(tmp_path / "unbroken"))


def test_memory_is_out(tmp_path: Path) -> None:
    said = fails(tmp_path, 1, "metrics", memory_is_out, more=("evaluation.every=1",))
    assert said.startswith(f"error: {OOM}")
