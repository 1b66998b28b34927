"""Decoded images: read once, kept in memory or in a file, and shared by the ranks of a node."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pfedmma.data.pixels.cache import DecodedImages, FittedImages, create_images
from pfedmma.data.sources.base import Unreadable


def picture(index: int) -> Tensor:
    return torch.full((3, 8, 8), index, dtype=torch.uint8)


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


def test_an_image_that_is_forgotten_takes_no_memory_and_is_decoded_again():
    reads: list[int] = []
    images = DecodedImages(lambda index: reads.append(index) or picture(index), budget=1e9)
    size = picture(0).numel()
    images.many([0, 1])
    for _ in range(2):
        images.forget(1)
        assert images.bytes_held == size
    assert torch.equal(images[1], picture(1)) and images.bytes_held == 2 * size
    assert reads == [0, 1, 1]


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
        together.wait(timeout=600)  # fewer threads would never come together
        return picture(index)

    DecodedImages(read, 1e9, ranks).many(range(24))
    assert len(names) == threads


def test_shared_fitted_images_are_made_by_one_and_seen_by_all(tmp_path: Path):
    made: list[int] = []

    def make(index: int) -> Tensor:
        made.append(index)
        return picture(index)

    path = tmp_path / "shared"
    create_images(path, 6, 8)
    one, other = FittedImages(6, 8, make, path), FittedImages(6, 8, make, path)
    path.unlink()  # both have it mapped: nothing is left behind
    one.fill(torch.tensor([0, 2, 4]))
    other.fill(torch.tensor([1, 3, 5]))
    assert torch.equal(one[torch.arange(6)], torch.stack([picture(i) for i in range(6)]))
    assert torch.equal(one[torch.arange(6)], other[torch.arange(6)])
    assert sorted(made) == list(range(6))


def test_a_batch_of_new_images_is_decoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """What has no room in memory is in the file before the next few are decoded."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    spilled: list[int] = []

    def read(index: int) -> Tensor:
        spilled.append(images.bytes_spilled)
        return picture(index)

    images = DecodedImages(read, budget=0)
    images.many(list(range(100)))
    at_once = images.at_once
    assert at_once == 8
    # When image i is decoded, all but the last few before it are in the file.
    assert all(held >= (number - at_once) * 192 for number, held in enumerate(spilled))
    assert len(spilled) == 100 and spilled[-1] > 0
