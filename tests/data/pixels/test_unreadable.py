"""Images before the first round: unreadable ones left out on every rank alike, test images kept once a node."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pfedmma.clip.preprocess import Preprocess
from pfedmma.comm.world import World
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData, without
from pfedmma.data.pixels.cache import DecodedImages, FittedImages, create_shared_file
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.pixels.prefetch import Prefetched, Stopwatch
from pfedmma.data.pixels.unreadable import leave_out_unreadable
from pfedmma.data.sources.base import Source, Split, Unreadable
from pfedmma.system.errors import UserError

CLIP = Preprocess(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CPU = torch.device("cpu")


def picture(index: int) -> Tensor:
    return torch.full((3, 8, 8), index, dtype=torch.uint8)


def source(bad_train: set[int], bad_test: set[int]) -> Source:
    """Twelve training and eight test images of two classes; reading one of the bad ones fails."""

    def split(count: int, bad: set[int]) -> Split:
        def read(index: int) -> Tensor:
            if index in bad:
                raise Unreadable(f"cannot read the image {index}.jpg")
            return picture(index)

        return Split(torch.arange(count) % 2, read)

    return Source("toy", ("a", "b"), {"train": split(12, bad_train), "test": split(8, bad_test)})


def federation(toy: Source) -> FederatedData:
    """Two clients of six training images; client 0 is tested on positions 0 .. 3 of the base test set, client 1 on the others."""
    labels = toy.splits["train"].labels
    clients = [Client(i, (0, 1), torch.arange(6 * i, 6 * i + 6), labels[6 * i : 6 * i + 6], torch.arange(4 * i, 4 * i + 4)) for i in (0, 1)]
    base = EvaluationSet("test", toy.class_names, torch.arange(8), toy.splits["test"].labels)
    return FederatedData(tuple(clients), base, None, toy.template)


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_unreadable_images_are_left_out_and_counted(augment: str, capsys: pytest.CaptureFixture[str]):
    toy = source({1, 7, 8}, {2, 5})
    whole = federation(toy)
    kept, count = leave_out_unreadable(whole, Pixels(toy, CLIP, augment, CPU), World(0, 1, CPU))
    assert count == 5
    assert kept.clients[0].train.tolist() == [0, 2, 3, 4, 5]
    assert kept.clients[1].train.tolist() == [6, 9, 10, 11]
    assert kept.clients[1].labels.tolist() == [0, 1, 0, 1]
    assert kept.base.indices.tolist() == [0, 1, 3, 4, 6, 7]
    # Client 0 had test images 0, 1, 2, 3: without 2 they stand at positions 0, 1, 2; client 1's 4, 6, 7 at 3, 4, 5.
    assert [client.test.tolist() for client in kept.clients] == [[0, 1, 2], [3, 4, 5]]
    assert capsys.readouterr().err.count("left out") == 5


def test_a_client_without_a_readable_image_is_an_error():
    whole = federation(source(set(), set()))
    with pytest.raises(UserError, match="client 1"):
        without(whole, {"train": torch.arange(6, 12)})
    with pytest.raises(UserError, match="base test images"):
        without(whole, {"test": torch.arange(8)})


def test_whole_federation_is_untouched():
    toy = source(set(), set())
    whole = federation(toy)
    kept, count = leave_out_unreadable(whole, Pixels(toy, CLIP, "crop", CPU), World(0, 1, CPU))
    assert count == 0 and kept is whole


def test_decoded_images_beyond_the_budget_come_back_from_the_file():
    reads: list[int] = []

    def read(index: int) -> Tensor:
        reads.append(index)
        return torch.full((3, 4, 4 + index), index, dtype=torch.uint8)

    images = DecodedImages(read, budget=3 * 4 * (4 + 5))  # room for images 0 and 1: 48 + 60 = 108 bytes
    for _ in range(3):
        for index in range(4):
            assert torch.equal(images[index], torch.full((3, 4, 4 + index), index, dtype=torch.uint8))
    assert reads == [0, 1, 2, 3]  # decoded once each, also the two in the file
    assert images.bytes_held == 108 and images.bytes_spilled == 3 * 4 * (6 + 7)
    assert images.decoded == 4


def test_shared_fitted_images_are_made_by_one_and_seen_by_all(tmp_path: Path):
    made: list[int] = []

    def make(index: int) -> Tensor:
        made.append(index)
        return picture(index)

    path = tmp_path / "shared"
    create_shared_file(path, 6, 8)
    one, other = FittedImages(6, 8, make, path), FittedImages(6, 8, make, path)
    path.unlink()  # both have it mapped: nothing is left behind
    one.fill(torch.tensor([0, 2, 4]))
    other.fill(torch.tensor([1, 3, 5]))
    assert torch.equal(one[torch.arange(6)], torch.stack([picture(i) for i in range(6)]))
    assert torch.equal(one[torch.arange(6)], other[torch.arange(6)])
    assert sorted(made) == list(range(6))


def test_prefetched_keeps_order_and_raises_where_it_happened():
    def items():
        yield from range(5)
        raise Unreadable("cannot read the image 5.jpg")

    seen = []
    with pytest.raises(Unreadable, match=r"5\.jpg"):
        for item in Prefetched(items(), Stopwatch()):
            seen.append(item)
    assert seen == list(range(5))


def test_prefetched_ends_its_thread_when_left_early():
    prefetched = Prefetched(iter(range(1000)), Stopwatch())
    for item in prefetched:
        if item == 3:
            break
    prefetched._thread.join(timeout=5)
    assert not prefetched._thread.is_alive()


def test_waiting_is_counted_and_taken():
    stopwatch = Stopwatch()
    list(Prefetched(iter(range(3)), stopwatch))
    assert stopwatch.seconds > 0
    assert stopwatch.take() > 0 and stopwatch.seconds == 0


def test_without_keeps_what_it_is_not_told_of():
    whole = dataclasses.replace(federation(source(set(), set())), template="{}")
    kept = without(whole, {"train": torch.tensor([0])})
    assert kept.template == "{}" and kept.base.indices.tolist() == whole.base.indices.tolist()


def test_many_images_are_decoded_once_and_a_bad_one_is_named():
    reads: list[int] = []

    def read(index: int) -> Tensor:
        reads.append(index)
        if index == 9:
            raise Unreadable("cannot read the image 9.jpg")
        return picture(index)

    images = DecodedImages(read, budget=1e9)
    got = images.many([3, 1, 3, 2, 1])
    assert [int(image[0, 0, 0]) for image in got] == [3, 1, 3, 2, 1]
    assert sorted(reads) == [1, 2, 3]
    with pytest.raises(Unreadable, match=r"9\.jpg"):
        images.many([4, 9, 5])
    assert torch.equal(images[4], picture(4)) and torch.equal(images[1], picture(1))  # still of use afterwards


@pytest.mark.parametrize(("ranks", "threads"), [(1, 8), (3, 2), (8, 1), (16, 1)])
def test_the_ranks_of_a_machine_share_its_cores_for_decoding(ranks: int, threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # has no say: the world counts the ranks
    names: set[str] = set()
    together = threading.Barrier(threads)

    def read(index: int) -> Tensor:
        names.add(threading.current_thread().name)
        together.wait(timeout=20)  # fewer threads would never come together
        return picture(index)

    DecodedImages(read, 1e9, ranks).many(range(24))
    assert len(names) == threads
