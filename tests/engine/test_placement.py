"""Local training and evaluation on a device, seen on the meta device: nothing is misplaced, and the host does not wait for the device.

One packed copy a step from pinned memory, one wait at the end of a training, one fetch at the end of a part of an evaluation.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pfedmma.clip.stems import Stem, StemCache
from pfedmma.data.partition.federated import Client
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.engine.batches import Stack, StagedBatch, by_steps, steps
from pfedmma.engine.cohort import Members, PassWidth, train_cohort
from pfedmma.engine.local import LocalTraining
from pfedmma.methods.fedmaple import FedMaPLe
from pfedmma.methods.fedmgp import FedMGP
from pfedmma.methods.forward import Forward
from pfedmma.methods.registry import NAMES
from pfedmma.stack.optim import OptimizerConfig
from tests.support import watched
from tests.support.stacks import (
    SGD,
    in_turn,
    new_clients,
    new_evaluator,
    new_members,
    new_method,
    new_training,
)
from tests.support.watched import COPY, DEVICE, FETCH, WAIT, Misplaced, pinned

pytestmark = pytest.mark.usefixtures("pinned")
STEP = "step"
ADAM = OptimizerConfig("adamw", lr=0.01, state="persist", clip=1.0)
# Waits before the first step: pFedMoAP runs each distinct prompt of others once, and how many there are is known on the device alone.
BEFORE = {"pfedmoap": 1}

__all__ = ["pinned"]


@pytest.fixture(scope="module")
def meta_clip(tiny_clip: nn.Module) -> nn.Module:
    return copy.deepcopy(tiny_clip).to(DEVICE)


@pytest.fixture(autouse=True)
def without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """FedMaPLe and FedMGP begin as the embeddings of words, which are read from the device once, when a run starts."""
    for kind in (FedMaPLe, FedMGP):
        monkeypatch.setattr(kind, "initial", lambda method, generator: {name: torch.zeros(shape) for name, shape in method.shapes.items()})


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of nested dataclasses, mappings and lists."""
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    for leaf in tree_leaves(value):
        yield from [leaf] if isinstance(leaf, Tensor) else tensors_of(leaf) if dataclasses.is_dataclass(leaf) else []


def few(cameras: bool) -> list[Client]:
    """Of one, three and nine images: two of them have one step, then run out."""
    return [new_clients(cameras)[i] for i in (0, 1, 4)]


def assert_on(device: torch.device, *values: Any) -> None:
    found = [tensor for value in values for tensor in tensors_of(value)]
    assert found and {tensor.device.type for tensor in found} == {device.type}


def begin(clip: nn.Module, name: str, optimizer: OptimizerConfig, augment: str, stems: float = 0.0) -> tuple[LocalTraining, Members]:
    """Training of a method, and members of whom some have sent something before."""
    method = new_method(clip, name=name)
    training, members = new_training(method, optimizer, augment, StemCache(stems)), new_members(method, optimizer, trained=(0, 1, 3))
    one_epoch = dataclasses.replace(training.batches.work, epochs=1)
    return dataclasses.replace(training, batches=dataclasses.replace(training.batches, work=one_epoch)), members


def watch_training(monkeypatch: pytest.MonkeyPatch, pinned: set[int], waits: int) -> list[str]:
    """Watch what happens inside `LocalTraining.train`; gives what is seen there, with each `STEP`."""
    train, step, seen = LocalTraining.train, LocalTraining.step, list[str]()

    def watched_train(*args: Any) -> Tensor:
        with watched.watched(pinned, waits) as watch:
            watch.seen = seen
            return train(*args)

    def marked_step(*args: Any) -> Tensor:
        seen.append(STEP)
        return step(*args)

    monkeypatch.setattr(LocalTraining, "train", watched_train)
    monkeypatch.setattr(LocalTraining, "step", marked_step)
    return seen


@pytest.mark.parametrize(
    ("name", "cameras", "augment", "optimizer"),
    [*((name, True, "crop", ADAM) for name in NAMES), ("pfedmma", False, "crop", SGD), ("pfedmma", True, "none", ADAM)],
)
def test_one_copy_a_step_and_one_wait_a_training(
    meta_clip: nn.Module,
    pinned: set[int],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    cameras: bool,
    augment: str,
    optimizer: OptimizerConfig,
) -> None:
    training, members = begin(meta_clip, name, optimizer, augment)
    clients, before = few(cameras), BEFORE.get(name, 0)
    seen = watch_training(monkeypatch, pinned, 1 + before)
    trained = train_cohort(training, clients, members, 1, PassWidth(len(clients)))
    count = max(steps(client, training.batches.work) for client in clients)
    # What stays the same goes once: how many steps each client takes, its camera, and learning rates where the method has its own.
    assert seen.count(COPY) == count + 1 + cameras + bool(training.method.learning_rates)
    assert [what for what in seen if what != COPY] == [WAIT] * before + [STEP] * count + [WAIT]
    states = members.states
    assert_on(DEVICE, trained.uploads, trained.losses, members.server.state, *states.own.values(), *states.optimizer_rows.values())
    assert_on(torch.device("cpu"), clients)


@pytest.mark.parametrize("name", NAMES)
def test_kept_stems_lie_on_the_device(meta_clip: nn.Module, pinned: set[int], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Images that are the same in every epoch cross over once; later steps send only which of them are wanted."""
    training, members = begin(meta_clip, name, SGD, "none", stems=float("inf"))
    clients = by_steps(few(True), training.batches.work)
    with watched.watched(pinned):
        kept = training.batches.kept(clients)
    assert len(kept) == len(clients) and all(isinstance(stem, Stem) for stem in kept)
    assert_on(DEVICE, kept)
    seen = watch_training(monkeypatch, pinned, 1 + BEFORE.get(name, 0))
    train_cohort(training, clients, members, 1, PassWidth(len(clients)))
    count = max(steps(client, training.batches.work) for client in clients)
    assert seen.count(COPY) == count + 2 + bool(training.method.learning_rates)


def test_what_is_staged_lies_on_the_host(meta_clip: nn.Module) -> None:
    training, _ = begin(meta_clip, "pfedmma", SGD, "crop")
    staged = training.batches.stage(Stack(new_clients()[:2], 1), [torch.arange(1), torch.arange(3)], 0)
    assert isinstance(staged, StagedBatch)
    assert_on(torch.device("cpu"), staged)


@pytest.mark.parametrize(
    ("name", "cameras", "kept"),
    [*((name, True, 0.0) for name in NAMES), *(("pfedmma", cameras, kept) for cameras in (True, False) for kept in (0.4, 1.0))],
)
def test_one_fetch_a_test_set(
    meta_clip: nn.Module, pinned: set[int], monkeypatch: pytest.MonkeyPatch, name: str, cameras: bool, kept: float
) -> None:
    """Clients two at a time, on images in two chunks and one. Of what is ``kept`` a second evaluation sends no images."""
    method, clients = new_method(meta_clip, name=name), [dataclasses.replace(client, test=torch.arange(6)) for client in few(cameras)]
    evaluator, members = new_evaluator(method, clients, in_turn(6), torch.arange(3), batch_size=8), new_members(method)
    members.server.pool.rows.clear()  # nobody reads others: that is done once, before the first image
    sets = evaluator.federated.sets().values()
    known = {images.classes: Forward.from_prompts(method, GENERIC_TEMPLATE, images.classes) for images in sets}
    monkeypatch.setattr(Forward, "from_prompts", lambda method, template, names: known[names])
    one = method.image_stem(torch.empty(1, 3, 32, 32, device=DEVICE)).nbytes
    stems = StemCache(kept * one * (6 + 3) * (len(clients) if cameras else 1))
    sent = []
    for _ in range(1 + (kept > 0)):
        with watched.watched(pinned, fetches=2) as watch:
            evaluator.table(method, members.answers(), clients, stems)
        assert [what for what in watch.seen if what != COPY] == [FETCH] * 2
        sent.append(watch.seen.count(COPY))
    if kept == 1.0:
        assert sent[1] == 2  # the labels of each test set


# The watch itself ------------------------------------------------------------------------------------------------------------------------


def test_the_watch_sees_what_waits_and_what_is_misplaced(pinned: set[int]) -> None:
    there, here = torch.ones(2, 3, device=DEVICE), torch.ones(2, 3)
    waiting = {
        "item": lambda: there.sum().item(),
        "bool": lambda: bool((there > 0).all()),
        "list": lambda: there.tolist(),
        "host": lambda: there.cpu(),
        "sent": lambda: here.to(DEVICE, non_blocking=True),
        "copied": lambda: there.copy_(here),
        "made": lambda: torch.tensor([1.0], device=DEVICE),
        "met": lambda: there @ here.T,
        "rows": lambda: there[torch.tensor([0])],
        "listed rows": lambda: there[[0, 1]],
    }
    for name, ask in waiting.items():
        with pytest.raises(Misplaced), watched.watched(pinned):
            ask()
            pytest.fail(name)
    with watched.watched(pinned), pytest.raises(NotImplementedError):
        there.nonzero()
    with watched.watched(pinned) as watch:
        assert (there * torch.tensor(2.0)).is_meta and there[1].is_meta  # numbers of the host and their use cost nothing
    assert watch.seen == []
