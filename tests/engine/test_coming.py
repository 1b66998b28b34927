"""Batches that are staged before their stack trains: what they change (nothing), when they begin, and how they end."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfedmma.clip.stems import StemCache
from pfedmma.data.partition.federated import Client
from pfedmma.data.sources.base import Unreadable
from pfedmma.engine.batches import Batches, Coming, Stack, StagedBatch
from pfedmma.engine.cohort import Members, PassWidth, Trained, train_cohort
from pfedmma.engine.local import LocalTraining
from pfedmma.methods.base import Method
from tests.support.stacks import gathered, new_clients, new_members, new_training, serve, strong_adapters

PATIENCE = 600  # seconds, for what comes at once
ROUNDS = {1: (0, 1, 2), 2: (4, 1, 2)}  # clients by round: of one step each, but of the fourth


def one_epoch(method: Method, augment: str = "crop", stems: float = 0.0) -> LocalTraining:
    training = new_training(method, augment=augment, stems=StemCache(stems))
    work = dataclasses.replace(training.batches.work, epochs=1)
    return dataclasses.replace(training, batches=dataclasses.replace(training.batches, work=work))


def members_of(round_: int) -> list[Client]:
    return [new_clients()[i] for i in ROUNDS[round_]]


def run(training: LocalTraining, members: Members, coming: Coming | None, width: PassWidth) -> list[Trained]:
    """All rounds; with ``coming``, each is told who trains in the next."""
    found = []
    for round_ in ROUNDS:
        if coming is not None:
            coming.next_round = Stack(members_of(round_ + 1), round_ + 1) if round_ + 1 in ROUNDS else None
        found.append(train_cohort(training, members_of(round_), members, round_, width, coming))
        serve(members, found[-1].uploads.mean(dim=0))
    return found


class Staged:
    """Notes which batch is staged in which thread; ``bad``: a round whose images cannot be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bad: int = 0) -> None:
        self.seen: list[tuple[int, int]] = []
        self.begun = {round_: threading.Event() for round_ in ROUNDS}
        stage = Batches.stage

        def noted(batches: Batches, stack: Stack, chosen: Sequence[Tensor], *more: Any) -> StagedBatch:
            self.seen.append((stack.round, len(stack.clients)))
            self.begun[stack.round].set()
            if stack.round == bad:
                raise Unreadable("cannot read the image 7.jpg")
            return stage(batches, stack, chosen, *more)

        monkeypatch.setattr(Batches, "stage", noted)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "pfedmma-prefetch"]


@pytest.mark.parametrize(
    ("augment", "stems", "width"),
    [("crop", 0.0, 2), ("crop", 0.0, 5), ("none", 0.0, 2), ("none", 1e9, 2)],
    ids=["passes of two", "crop", "plain", "kept"],
)
def test_what_is_staged_ahead_changes_no_bit(
    tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, augment: str, stems: float, width: int
) -> None:
    """Each batch is made once, whoever asks first."""
    ends, staged = [], []
    for ahead in (False, True):
        method = strong_adapters(tiny_clip)
        training, members = one_epoch(method, augment, stems), new_members(method)
        with monkeypatch.context() as patch, Coming() as coming:
            watch = Staged(patch)
            found = run(training, members, coming if ahead else None, PassWidth(width))
        staged.append(sorted(watch.seen))
        ends.append([gathered(members), *(one.uploads for one in found), *(one.losses for one in found)])
        assert not threads()
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert staged[0] == staged[1]


def test_the_next_round_is_staged_while_nobody_trains(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of it than waits in the queue and is in the making, and it ends without being asked for."""
    method, watch = strong_adapters(tiny_clip), Staged(monkeypatch)
    training, members = one_epoch(method), new_members(method)
    with Coming() as coming:
        coming.next_round = Stack(members_of(2), 2)
        train_cohort(training, members_of(1), members, 1, PassWidth(5), coming)
        assert watch.begun[2].wait(PATIENCE)
        assert threads()
    assert not threads()
    assert 0 < len([1 for round_, _ in watch.seen if round_ == 2]) <= 2


def test_an_image_that_cannot_be_read_is_named_in_its_own_round(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    method, watch = strong_adapters(tiny_clip), Staged(monkeypatch, bad=2)
    training, members = one_epoch(method), new_members(method)
    with Coming() as coming:
        coming.next_round = Stack(members_of(2), 2)
        train_cohort(training, members_of(1), members, 1, PassWidth(5), coming)
        assert watch.begun[2].wait(PATIENCE)
        with pytest.raises(Unreadable, match=r"7\.jpg"):
            train_cohort(training, members_of(2), members, 2, PassWidth(5), coming)
    assert not threads()


def test_a_pass_that_does_not_fit_leaves_nothing_staged(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its last step, when the next one is being staged: both are made anew, of one client each."""
    method, step, watch = strong_adapters(tiny_clip), LocalTraining.step, Staged(monkeypatch)
    training, members, alone = one_epoch(method), new_members(method), new_members(method)
    wanted = train_cohort(training, members_of(1), alone, 1, PassWidth(1))
    del watch.seen[:]

    def small(training: LocalTraining, params: Tensor, *more: Any) -> Tensor:
        if len(params) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(training, params, *more)

    monkeypatch.setattr(LocalTraining, "step", small)
    with Coming() as coming:
        found = train_cohort(training, members_of(1), members, 1, PassWidth(2, fits=True), coming)
    assert torch.equal(found.uploads, wanted.uploads) and torch.equal(gathered(members), gathered(alone))
    assert watch.seen[0] == (1, 2) and watch.seen.count((1, 1)) in (3, 4)  # whether the third began before the second failed
    assert not threads()
