"""Stems that are kept because their pixels come again change no result, stay within their memory, and are computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.accuracy.evaluator import Evaluator
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.stems import Features, Stem, StemCache
from pfedmma.config import schema
from pfedmma.data.partition.camera import camera
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source, Split
from pfedmma.engine import local
from pfedmma.engine.batches import LocalWork, by_steps
from pfedmma.engine.cohort import PassWidth, train_cohort
from pfedmma.engine.local import Trainer
from pfedmma.methods import registry
from pfedmma.methods.registry import NAMES, MethodConfig
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import POOL

CPU = torch.device("cpu")
CLASSES = ("cat", "dog", "bird", "fern", "red_fish")
# One image; less than a batch; exactly a batch; several batches, the last one ragged; and again, so that two clients run to the end.
SIZES = (1, 3, 4, 11, 9)
BATCH, EPOCHS, ROUNDS = 4, 2, 2
WHOLE = 4  # images of a whole stem at a time
PARTS = [-(-size // WHOLE) for size in SIZES]  # 1, 1, 1, 3, 3
TESTED = 13  # test images, in three batches of an evaluation


# A federation on images of noise ---------------------------------------------------------------------------------------------------------


def noise(count: int, stream: str) -> Split:
    pictures = torch.randint(256, (count, 3, 32, 32), generator=rng.generator(0, stream)).to(torch.uint8)
    return Split(torch.arange(count) % len(CLASSES), lambda index: pictures[index])


def new_clients(cameras: bool) -> list[Client]:
    cuts = torch.arange(sum(SIZES)).split(SIZES)
    tests = [torch.arange(client, TESTED, len(SIZES)) for client in range(len(SIZES))]
    return [Client(i, (), own, own % len(CLASSES), tests[i], camera(0, i, 0.5) if cameras else None) for i, own in enumerate(cuts)]


def new_trainer(clip: nn.Module, name: str, stems: StemCache, augment: str = "none") -> Trainer:
    """The method on the tiny CLIP; with GELU, as a ReLU's kink turns a rounding into a step."""
    backbone = Backbone.freeze(clip, "tiny")
    method = registry.build(MethodConfig(name, dim=8, scale=0.3, activation="gelu"), backbone)
    source = Source("noise", CLASSES, {"train": noise(sum(SIZES), "train"), "test": noise(TESTED, "test")})
    pixels = Pixels(source, backbone.preprocess, augment, backbone.device)
    text_stem = method.text_stem(backbone.prompts(GENERIC_TEMPLATE, CLASSES))
    optimizer = dataclasses.replace(schema.load(None, [f"method.name={name}"]).optimizer, lr=0.01, eps=0.1)
    work = LocalWork(EPOCHS, BATCH, optimizer, seed=0)
    return Trainer(backbone, method, Layout(method.shapes, method.exchange), pixels, text_stem, work, stems)


def drawn(trainer: Trainer, client: int) -> Tensor:
    """A state of its own for each client [P], no number of it zero."""
    generator = rng.generator(0, "state", client)
    start = trainer.layout.pack(trainer.method.initial(generator))
    return start + 0.1 * torch.randn(start.shape, generator=generator)


def new_store(trainer: Trainer) -> ClientStore:
    """Every client with private tensors of its own; some have sent something before."""
    store = ClientStore(trainer.layout, drawn(trainer, len(SIZES)), trainer.work.optimizer, CPU)
    store.private.update({client: drawn(trainer, client)[trainer.layout.exchanged_size :] for client in range(len(SIZES))})
    columns = trainer.layout.columns.get(POOL, slice(0, 0))
    store.pool.rows = {client: drawn(trainer, 10 + client)[columns] for client in (0, 1, 3) if POOL in trainer.layout.columns}
    return store


@dataclasses.dataclass
class Counted:
    """How many images of how many calls went through the frozen blocks, and how many whole stems were asked for."""

    images: list[int] = dataclasses.field(default_factory=list)
    whole: list[int] = dataclasses.field(default_factory=list)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer], Counted]:
    def watch(trainer: Trainer) -> Counted:
        counts = Counted()
        kind = type(trainer.method)
        image_stem, whole_stem = kind.image_stem, Trainer.whole_stem

        def counted_stem(method: Any, pixels: Tensor) -> Any:
            counts.images.append(len(pixels))
            return image_stem(method, pixels)

        def counted_whole(self: Trainer, client: Client) -> Any:
            counts.whole.append(client.id)
            return whole_stem(self, client)

        monkeypatch.setattr(kind, "image_stem", counted_stem)
        monkeypatch.setattr(Trainer, "whole_stem", counted_whole)
        monkeypatch.setattr(local, "WHOLE_STEM_BATCH", WHOLE)
        return counts

    return watch


# Training --------------------------------------------------------------------------------------------------------------------------------


def train_all(trainer: Trainer, cameras: bool, width: int = len(SIZES)) -> tuple[Tensor, Tensor, Tensor]:
    """(before, after [C,P], losses [ROUNDS,C]) of `ROUNDS` rounds of all clients."""
    store = new_store(trainer)
    before = store.gather(range(len(SIZES)))
    losses = []
    for round_ in range(1, ROUNDS + 1):
        shared, loss = train_cohort(trainer, new_clients(cameras), store, round_, PassWidth(width))
        store.shared = shared.mean(dim=0)
        losses.append(loss)
    own = torch.stack([store.private[client] for client in range(len(SIZES))])
    return before, torch.cat([shared, own], dim=1), torch.stack(losses)


def assert_same_training(trainer: Trainer, got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(got[2], wanted[2], rtol=1e-5, atol=1e-6)
    views = trainer.layout.views
    for tensor, after in views(wanted[1]).items():
        for client in range(len(SIZES)) if after.numel() else ():
            # A thousandth of the way that the tensor went, and what fp32 cannot tell apart.
            way = after[client] - views(wanted[0])[tensor][client]
            limit = 1e-3 * way.abs().max() + 2e-7 * after[client].abs().max()
            error = (views(got[1])[tensor][client] - after[client]).abs().max()
            assert error <= limit, f"{tensor} of client {client} is off by {error:g}, more than {limit:g}"


@pytest.mark.parametrize("cameras", [True, False], ids=["cameras", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_training_on_kept_stems_is_training(tiny_clip: nn.Module, counted: Callable[[Trainer], Counted], name: str, cameras: bool) -> None:
    """And each training image goes through the frozen blocks once in all rounds."""
    stems = StemCache(1e9)
    without, trainer = new_trainer(tiny_clip, name, StemCache(0)), new_trainer(tiny_clip, name, stems)
    wanted = train_all(without, cameras)
    counts = counted(trainer)
    assert_same_training(trainer, train_all(trainer, cameras), wanted)
    assert sum(counts.images) == sum(SIZES) and len(counts.images) == sum(PARTS)
    assert counts.whole == [client.id for client in by_steps(new_clients(cameras), BATCH)]
    assert 0 < stems.held <= stems.limit and not stems.full
    if name != "zeroshot":
        assert ((wanted[1] - wanted[0]).abs().amax(dim=1) > 1e-3).all()  # the way is longer than the tolerance
    assert len({round(loss, 4) for loss in wanted[2].flatten().tolist()}) >= len(SIZES)


def test_cameras_are_seen(tiny_clip: nn.Module) -> None:
    """So that the equality above says something about them."""
    trainer = new_trainer(tiny_clip, "pfedmma", StemCache(1e9))
    other = new_trainer(tiny_clip, "pfedmma", StemCache(1e9))
    assert (train_all(trainer, True)[2] - train_all(other, False)[2]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["pfedmma", "promptfl"])
def test_with_room_for_some_clients(tiny_clip: nn.Module, counted: Callable[[Trainer], Counted], name: str) -> None:
    """Two a pass: clients 3 and 4 find room, client 0 does not, and from then on nothing more is tried, in no round."""
    wanted = train_all(new_trainer(tiny_clip, name, StemCache(0)), True, width=2)
    each = StemCache(1e9)
    train_all(new_trainer(tiny_clip, name, each), True, width=2)
    stems = StemCache(each.held * (SIZES[3] + SIZES[4]) / sum(SIZES))
    trainer = new_trainer(tiny_clip, name, stems)
    counts = counted(trainer)
    assert_same_training(trainer, train_all(trainer, True, width=2), wanted)
    assert counts.whole == [3, 4, 0]
    assert stems.held == stems.limit and stems.full
    assert [("train", client) in stems for client in range(len(SIZES))] == [False, False, False, True, True]


def test_a_pass_of_which_some_clients_find_no_room(tiny_clip: nn.Module, counted: Callable[[Trainer], Counted]) -> None:
    wanted = train_all(new_trainer(tiny_clip, "pfedmma", StemCache(0)), True)
    each = StemCache(1e9)
    train_all(new_trainer(tiny_clip, "pfedmma", each), True)
    stems = StemCache(each.held * 0.5)  # client 3 alone
    trainer = new_trainer(tiny_clip, "pfedmma", stems)
    counts = counted(trainer)
    assert_same_training(trainer, train_all(trainer, True), wanted)
    assert counts.whole == [3, 4]
    assert 0 < stems.held <= stems.limit


def test_augmented_images_are_not_kept(tiny_clip: nn.Module, counted: Callable[[Trainer], Counted]) -> None:
    stems = StemCache(1e9)
    trainer = new_trainer(tiny_clip, "pfedmma", stems, augment="crop")
    counts = counted(trainer)
    train_all(trainer, True)
    assert stems.held == 0 and not counts.whole
    assert len(counts.images) == ROUNDS * 6  # a call a step


# Evaluation ------------------------------------------------------------------------------------------------------------------------------


def new_evaluator(trainer: Trainer, cameras: bool) -> tuple[Evaluator, list[Client]]:
    """Two clients a pass, five images of each in a batch."""
    clients, indices = new_clients(cameras), torch.arange(TESTED)
    base = EvaluationSet("test", CLASSES, indices, indices % len(CLASSES))
    novel = EvaluationSet("test", ("apple", "pear"), indices[:6], indices[:6] % 2)
    federation = FederatedData(tuple(clients), base, novel, GENERIC_TEMPLATE)
    return Evaluator(trainer.backbone, federation, trainer.pixels, batch_size=10, clients_per_pass=2), clients


@pytest.mark.parametrize("cameras", [True, False], ids=["cameras", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_evaluation_with_kept_stems(tiny_clip: nn.Module, counted: Callable[[Trainer], Counted], name: str, cameras: bool) -> None:
    """Is the evaluation without; the second sends no image through the frozen blocks, whatever has been trained since."""
    trainer = new_trainer(tiny_clip, name, StemCache(0))
    evaluator, clients = new_evaluator(trainer, cameras)
    store, later = new_store(trainer), new_store(trainer)
    later.shared = later.shared.flip(0).contiguous()
    later.private.update({client: 2.0 * row for client, row in list(later.private.items())})
    wanted = [evaluator.table(trainer.method, one, clients) for one in (store, later)]

    counts, stems = counted(trainer), StemCache(1e9)
    got = [evaluator.table(trainer.method, store, clients, stems)]
    assert sum(counts.images) == (len(SIZES) if cameras else 1) * (TESTED + 6)
    counts.images.clear()
    got += [evaluator.table(trainer.method, one, clients, stems) for one in (store, later)]
    assert not counts.images
    assert 0 < stems.held <= stems.limit and not stems.full
    for table, expected in zip(got, (wanted[0], *wanted), strict=True):
        torch.testing.assert_close(table, expected, rtol=0, atol=0, equal_nan=True)
    if name not in ("zeroshot", "fedclip"):
        assert not torch.equal(wanted[0][:, :3], wanted[1][:, :3])


@pytest.mark.parametrize("cameras", [True, False], ids=["cameras", "plain"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_evaluation_with_room_for_some_stems(
    tiny_clip: nn.Module, counted: Callable[[Trainer], Counted], cameras: bool, part: float
) -> None:
    trainer = new_trainer(tiny_clip, "pfedmma", StemCache(0))
    evaluator, clients = new_evaluator(trainer, cameras)
    store, every = new_store(trainer), StemCache(1e9)
    wanted = evaluator.table(trainer.method, store, clients, every)
    stems, counts = StemCache(part * every.held), counted(trainer)
    runs = []
    for _ in range(2):
        table = evaluator.table(trainer.method, store, clients, stems)
        torch.testing.assert_close(table, wanted, rtol=0, atol=0, equal_nan=True)
        assert stems.held <= stems.limit and stems.full
        runs.append(sum(counts.images))
        counts.images.clear()
    assert runs[0] == (len(SIZES) if cameras else 1) * (TESTED + 6)  # clients that see the same images share what is not kept
    assert 0 < runs[1] < runs[0] if part else runs[1] == runs[0]


def test_training_and_evaluation_share_one_memory(tiny_clip: nn.Module) -> None:
    stems = StemCache(1e9)
    trainer = new_trainer(tiny_clip, "pfedmma", stems)
    evaluator, clients = new_evaluator(trainer, True)
    wanted = evaluator.table(trainer.method, new_store(trainer), clients)
    train_all(trainer, True)
    held = stems.held
    table = evaluator.table(trainer.method, new_store(trainer), clients, stems)
    torch.testing.assert_close(table, wanted, rtol=0, atol=0, equal_nan=True)
    assert stems.held > held


# The cache, and stems as values ----------------------------------------------------------------------------------------------------------


def test_the_cache_counts_what_it_holds() -> None:
    made: list[str] = []

    def make(key: str, size: int) -> Any:
        return lambda: made.append(key) or Stem(torch.zeros(size), torch.zeros(2), None, 3)

    stems = StemCache(4 * 10)
    for key, size in (("a", 3), ("b", 6), ("a", 3), ("c", 3), ("d", 1), ("b", 6)):
        stems.get(key, make(key, size))
        assert stems.held <= stems.limit
    assert made == ["a", "b", "c", "d", "b"]  # b does not fit beside a (5 + 8), c does (5 + 5), d finds it full
    assert [key in stems for key in "abcd"] == [True, False, True, False]
    assert stems.held == 40 and stems.full


def test_a_cache_without_memory_is_full_at_once() -> None:
    assert StemCache(0).full and not StemCache(1).full


def stem_of(count: int, normed: bool, pool: bool) -> Stem:
    start = torch.arange(count * 6.0).view(count, 3, 2)
    return Stem(start, -start if normed else None, torch.arange(count) if pool else None, 2)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("pool", [True, False])
def test_stems_of_some_of_several_and_for_several(normed: bool, pool: bool) -> None:
    rows = torch.tensor([3, 0, 0])
    whole = stem_of(5, normed, pool)
    some = {"take": whole.take(rows), "join": Stem.join([whole, whole.take(rows)]), "repeat": whole.repeat(3)}
    places = {"take": rows, "join": torch.tensor([0, 1, 2, 3, 4, 3, 0, 0]), "repeat": torch.arange(5).repeat(3)}
    for name, stem in some.items():
        assert stem.blocks == 2
        for part, wanted in zip(stem[:3], whole[:3], strict=True):
            assert (part is None) == (wanted is None)
            assert part is None or torch.equal(part, wanted[places[name]]), name
    assert torch.equal(whole.repeat(1).output, whole.output)


def test_features_of_some_of_several_and_for_several() -> None:
    whole = Features(torch.arange(10.0).view(5, 2))
    rows = torch.tensor([3, 0, 0])
    assert torch.equal(whole.take(rows).value, whole.value[rows])
    assert torch.equal(Features.join([whole, whole.take(rows)]).value, torch.cat([whole.value, whole.value[rows]]))
    assert torch.equal(whole.repeat(3).value, whole.value.repeat(3, 1))
