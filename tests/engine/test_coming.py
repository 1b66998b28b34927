"""Batches that are staged before their stack trains: what they change (nothing), when they begin, and how they end."""

from __future__ import annotations

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
from tests.support.stacks import gathered, new_clients, new_members, new_training, serve, strong_adapters

PATIENCE = 600  # seconds, for what comes at once
ROUNDS = {1: (0, 1, 3), 2: (4, 1, 2), 3: (0, 1, 3)}  # clients by round


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

        def noted(batches: Batches, clients: Sequence[Client], chosen: Sequence[Tensor], round_: int, *more: Any) -> StagedBatch:
            self.seen.append((round_, len(clients)))
            self.begun[round_].set()
            if round_ == bad:
                raise Unreadable("cannot read the image 7.jpg")
            return stage(batches, clients, chosen, round_, *more)

        monkeypatch.setattr(Batches, "stage", noted)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "pfedmma-prefetch"]


@pytest.mark.parametrize(("augment", "stems"), [("crop", 0.0), ("none", 0.0), ("none", 1e9)], ids=["crop", "plain", "kept"])
@pytest.mark.parametrize("width", [2, 5])
def test_what_is_staged_ahead_changes_no_bit(
    tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, augment: str, stems: float, width: int
) -> None:
    """Each batch is made once, whoever asks first."""
    ends, staged = [], []
    for ahead in (False, True):
        method = strong_adapters(tiny_clip)
        training, members = new_training(method, augment=augment, stems=StemCache(stems)), new_members(method)
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
    training, members = new_training(method, augment="crop"), new_members(method)
    with Coming() as coming:
        coming.next_round = Stack(members_of(2), 2)
        train_cohort(training, members_of(1), members, 1, PassWidth(5), coming)
        assert watch.begun[2].wait(PATIENCE)
        assert threads()
    assert not threads()
    assert 0 < len([1 for round_, _ in watch.seen if round_ == 2]) <= 2 and not watch.begun[3].is_set()


def test_an_image_that_cannot_be_read_is_named_in_its_own_round(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    method, watch = strong_adapters(tiny_clip), Staged(monkeypatch, bad=2)
    training, members = new_training(method, augment="crop"), new_members(method)
    with Coming() as coming:
        coming.next_round = Stack(members_of(2), 2)
        train_cohort(training, members_of(1), members, 1, PassWidth(5), coming)
        assert watch.begun[2].wait(PATIENCE)
        with pytest.raises(Unreadable, match=r"7\.jpg"):
            train_cohort(training, members_of(2), members, 2, PassWidth(5), coming)
    assert not threads()


def test_a_pass_that_does_not_fit_leaves_nothing_staged(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the very last step of a pass, when the next one is being staged: both are made anew, of fewer clients."""
    method = strong_adapters(tiny_clip)
    (training, members), (_, alone) = ((new_training(method, augment="crop"), new_members(method)) for _ in range(2))
    wanted = run(training, alone, None, PassWidth(1))
    step, last = LocalTraining.step, 4 * 1 + 2  # steps of client 3, of eleven images

    def small(training: LocalTraining, params: Tensor, state: dict[str, Tensor], *more: Any) -> Tensor:
        if len(state["step"]) == 1 or state["step"].max() < last - 1 or width.now == 1:
            return step(training, params, state, *more)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(LocalTraining, "step", lambda training, *args: small(training, *args))
    width = PassWidth(2, fits=True)
    with Coming() as coming:
        found = run(training, members, coming, width)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.uploads, other.uploads, rtol=1e-4, atol=1e-6)
    assert not threads()
