"""Stems that are kept because their pixels come again change no result, stay within their memory, and are computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfedmma.accuracy.evaluator import Evaluator
from pfedmma.clip.stems import StemCache
from pfedmma.config import schema
from pfedmma.data.partition.federated import Client
from pfedmma.engine import batches
from pfedmma.engine.batches import Batches, by_steps
from pfedmma.engine.cohort import Members, PassWidth, train_cohort
from pfedmma.engine.local import LocalTraining
from pfedmma.methods.base import Method
from pfedmma.methods.registry import NAMES
from tests.support.stacks import (
    ALL,
    SIZES,
    gathered,
    in_turn,
    new_clients,
    new_evaluator,
    new_members,
    new_method,
    new_training,
    serve,
)

ROUNDS = 2
WHOLE = 4  # images of a whole stem at a time
PARTS = [-(-size // WHOLE) for size in SIZES]  # 1, 1, 1, 3, 3
TESTED, OTHERS = 13, 6  # test images of the base classes, in three batches of an evaluation, and of the novel ones


def strong(clip: nn.Module, name: str) -> Method:
    """A method whose tensors matter; with GELU, as a ReLU's kink turns a rounding into a step."""
    return new_method(clip, name=name, dim=8, scale=0.3, activation="gelu")


def start(clip: nn.Module, name: str, stems: StemCache, augment: str = "none") -> tuple[LocalTraining, Members]:
    """Training of a method, and what its clients begin with; some have sent something before."""
    method = strong(clip, name)
    optimizer = dataclasses.replace(schema.load(None, [f"method.name={name}"]).optimizer, lr=0.01, eps=0.1)
    members = new_members(method, optimizer)
    for client in (2, 4):
        members.server.pool.rows.pop(client, None)
    return new_training(method, optimizer, augment, stems), members


@dataclasses.dataclass
class Counted:
    """How many images of how many calls went through the frozen blocks, and how many whole stems were asked for."""

    images: list[int] = dataclasses.field(default_factory=list)
    whole: list[int] = dataclasses.field(default_factory=list)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Method], Counted]:
    def watch(method: Method) -> Counted:
        counts = Counted()
        kind = type(method)
        image_stem, whole_stem = kind.image_stem, Batches.whole_stem

        def counted_stem(method: Any, pixels: Tensor) -> Any:
            counts.images.append(len(pixels))
            return image_stem(method, pixels)

        def counted_whole(self: Batches, client: Client, rows: Tensor) -> Any:
            assert rows.tolist() == list(range(len(client.train)))
            counts.whole.append(client.id)
            return whole_stem(self, client, rows)

        monkeypatch.setattr(kind, "image_stem", counted_stem)
        monkeypatch.setattr(Batches, "whole_stem", counted_whole)
        monkeypatch.setattr(batches, "WHOLE_STEM_BATCH", WHOLE)
        return counts

    return watch


# Training --------------------------------------------------------------------------------------------------------------------------------


def train_all(training: LocalTraining, members: Members, cameras: bool, width: int = len(SIZES)) -> tuple[Tensor, Tensor, Tensor]:
    """(before, after [C,P], losses [ROUNDS,C]) of `ROUNDS` rounds of all clients."""
    before = gathered(members)
    losses = []
    for round_ in range(1, ROUNDS + 1):
        trained = train_cohort(training, new_clients(cameras), members, round_, PassWidth(width))
        serve(members, trained.uploads.mean(dim=0))
        losses.append(trained.losses)
    private = training.layout.size - training.layout.exchanged_size  # before them, a client may have exchanged ones of its own
    own = torch.stack([members.states.own[client][members.states.own.width - private :] for client in ALL])
    return before, torch.cat([trained.uploads, own], dim=1), torch.stack(losses)


def assert_same_training(training: LocalTraining, got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(got[2], wanted[2], rtol=1e-5, atol=1e-6)
    views = training.layout.views
    for tensor, after in views(wanted[1]).items():
        for client in range(len(SIZES)) if after.numel() else ():
            # A thousandth of the way that the tensor went, and what fp32 cannot tell apart.
            way = after[client] - views(wanted[0])[tensor][client]
            limit = 1e-3 * way.abs().max() + 2e-7 * after[client].abs().max()
            error = (views(got[1])[tensor][client] - after[client]).abs().max()
            assert error <= limit, f"{tensor} of client {client} is off by {error:g}, more than {limit:g}"


@pytest.mark.parametrize("cameras", [True, False], ids=["cameras", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_training_on_kept_stems_is_training(tiny_clip: nn.Module, counted: Callable[[Method], Counted], name: str, cameras: bool) -> None:
    """And each training image goes through the frozen blocks once in all rounds."""
    wanted = train_all(*start(tiny_clip, name, StemCache(0)), cameras)
    stems = StemCache(1e9)
    training, members = start(tiny_clip, name, stems)
    counts = counted(training.method)
    assert_same_training(training, train_all(training, members, cameras), wanted)
    assert sum(counts.images) == sum(SIZES) and len(counts.images) == sum(PARTS)
    assert counts.whole == [client.id for client in by_steps(new_clients(cameras), training.batches.work)]
    assert 0 < stems.held <= stems.limit and not stems.full
    if name != "zeroshot":
        assert ((wanted[1] - wanted[0]).abs().amax(dim=1) > 1e-3).all()  # the way is longer than the tolerance
    assert len({round(loss, 4) for loss in wanted[2].flatten().tolist()}) >= len(SIZES)


def test_cameras_are_seen(tiny_clip: nn.Module) -> None:
    """So that the equality above says something about them."""
    with_, without = (train_all(*start(tiny_clip, "pfedmma", StemCache(1e9)), cameras)[2] for cameras in (True, False))
    assert (with_ - without).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["pfedmma", "promptfl"])
def test_with_room_for_some_clients(tiny_clip: nn.Module, counted: Callable[[Method], Counted], name: str) -> None:
    """Two a pass: clients 3 and 4 find room, client 0 does not, and from then on nothing more is tried, in no round."""
    wanted = train_all(*start(tiny_clip, name, StemCache(0)), True, width=2)
    each = StemCache(1e9)
    train_all(*start(tiny_clip, name, each), True, width=2)
    stems = StemCache(each.held * (SIZES[3] + SIZES[4]) / sum(SIZES))
    training, members = start(tiny_clip, name, stems)
    counts = counted(training.method)
    assert_same_training(training, train_all(training, members, True, width=2), wanted)
    assert counts.whole == [3, 4, 0]
    assert stems.held == stems.limit and stems.full
    held = [stems.holds(("train", client), torch.arange(SIZES[client])) for client in ALL]
    assert held == [False, False, False, True, True]


def test_a_pass_of_which_some_clients_find_no_room(tiny_clip: nn.Module, counted: Callable[[Method], Counted]) -> None:
    wanted = train_all(*start(tiny_clip, "pfedmma", StemCache(0)), True)
    each = StemCache(1e9)
    train_all(*start(tiny_clip, "pfedmma", each), True)
    stems = StemCache(each.held * 0.5)  # client 3 alone
    training, members = start(tiny_clip, "pfedmma", stems)
    counts = counted(training.method)
    assert_same_training(training, train_all(training, members, True), wanted)
    assert counts.whole == [3, 4]
    assert 0 < stems.held <= stems.limit


def test_augmented_images_are_not_kept(tiny_clip: nn.Module, counted: Callable[[Method], Counted]) -> None:
    stems = StemCache(1e9)
    training, members = start(tiny_clip, "pfedmma", stems, augment="crop")
    counts = counted(training.method)
    train_all(training, members, True)
    assert stems.held == 0 and not counts.whole
    assert len(counts.images) == ROUNDS * 6  # a call a step


# Evaluation ------------------------------------------------------------------------------------------------------------------------------


def to_evaluate(clip: nn.Module, name: str, cameras: bool) -> tuple[Method, Members, Evaluator, tuple[Client, ...]]:
    """Two clients a pass, five images of each in a batch."""
    method, members = strong(clip, name), start(clip, name, StemCache(0))[1]
    evaluator = new_evaluator(method, new_clients(cameras, TESTED), in_turn(TESTED), torch.arange(OTHERS) % 2)
    return method, members, evaluator, evaluator.federated.clients


def moved(members: Members) -> None:
    """Let all clients train, as it were."""
    serve(members, 5.0 * members.server.shared.flip(0))
    members.states.own.update({client: -5.0 * row for client, row in list(members.states.own.items())})


def assert_same(table: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(table, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cameras", [True, False], ids=["cameras", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_evaluation_with_kept_stems(tiny_clip: nn.Module, counted: Callable[[Method], Counted], name: str, cameras: bool) -> None:
    """Is the evaluation without; the second sends no image through the frozen blocks, whatever has been trained since."""
    method, members, evaluator, clients = to_evaluate(tiny_clip, name, cameras)
    later = to_evaluate(tiny_clip, name, cameras)[1]
    moved(later)
    wanted = [evaluator.table(method, one.answers(), clients) for one in (members, later)]

    counts, stems = counted(method), StemCache(1e9)
    got = [evaluator.table(method, members.answers(), clients, stems)]
    assert sum(counts.images) == (len(SIZES) if cameras else 1) * (TESTED + OTHERS)
    counts.images.clear()
    got += [evaluator.table(method, one.answers(), clients, stems) for one in (members, later)]
    assert not counts.images
    assert 0 < stems.held <= stems.limit and not stems.full
    for table, expected in zip(got, (wanted[0], *wanted), strict=True):
        assert_same(table, expected)
    if name not in ("zeroshot", "fedclip"):
        assert not torch.equal(wanted[0][:, :3], wanted[1][:, :3])


@pytest.mark.parametrize("cameras", [True, False], ids=["cameras", "plain"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_evaluation_with_room_for_some_stems(
    tiny_clip: nn.Module, counted: Callable[[Method], Counted], cameras: bool, part: float
) -> None:
    method, members, evaluator, clients = to_evaluate(tiny_clip, "pfedmma", cameras)
    every = StemCache(1e9)
    wanted = evaluator.table(method, members.answers(), clients, every)
    stems, counts = StemCache(part * every.held), counted(method)
    runs = []
    for _ in range(2):
        assert_same(evaluator.table(method, members.answers(), clients, stems), wanted)
        assert stems.held <= stems.limit and stems.full
        runs.append(sum(counts.images))
        counts.images.clear()
    assert runs[0] == (len(SIZES) if cameras else 1) * (TESTED + OTHERS)  # clients that see the same images share what is not kept
    assert 0 < runs[1] < runs[0] if part else runs[1] == runs[0]


@pytest.mark.parametrize("cameras", [True, False], ids=["cameras", "plain"])
def test_the_last_clients_in_larger_batches_find_what_the_others_kept(
    tiny_clip: nn.Module, counted: Callable[[Method], Counted], cameras: bool
) -> None:
    """17 clients in passes of 2: the last one is tested by itself, on slices of another length; each image is kept once all the same."""
    method = strong(tiny_clip, "pfedmma")
    looks = new_clients(cameras)
    clients = [dataclasses.replace(looks[i % len(SIZES)], id=i, test=torch.arange(i % TESTED, TESTED)) for i in range(17)]
    evaluator = new_evaluator(method, clients, in_turn(TESTED), torch.arange(OTHERS) % 2)
    answers = new_members(method, trained=range(17)).answers()
    wanted = torch.cat([evaluator.table(method, answers, [client]) for client in clients])

    stems, counts = StemCache(1e9), counted(method)
    assert_same(evaluator.table(method, answers, clients, stems), wanted)
    made = (17 if cameras else 1) * (TESTED + OTHERS)
    assert sum(counts.images) == made
    one = method.image_stem(evaluator.pixels.normalise(evaluator.pixels.fitted("test", torch.arange(1))))
    assert stems.held == made * one.nbytes
    counts.images.clear()
    for batch_size in (10, 3, 100):  # in slices of any other length
        assert_same(dataclasses.replace(evaluator, batch_size=batch_size).table(method, answers, clients, stems), wanted)
    assert not counts.images and stems.held == made * one.nbytes


def test_training_and_evaluation_share_one_memory(tiny_clip: nn.Module) -> None:
    method, members, evaluator, clients = to_evaluate(tiny_clip, "pfedmma", True)
    wanted = evaluator.table(method, members.answers(), clients)
    stems = StemCache(1e9)
    train_all(*start(tiny_clip, "pfedmma", stems), True)
    held = stems.held
    assert_same(evaluator.table(method, members.answers(), clients, stems), wanted)
    assert stems.held > held > 0
