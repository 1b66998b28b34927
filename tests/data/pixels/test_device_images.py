"""Images that rest on a device: those that came first, up to a budget, end to end. The CPU stands for the device."""

from __future__ import annotations

import threading

import pytest
import torch

from pfedmma.data.pixels import device_images
from pfedmma.data.pixels.crop import end_to_end
from pfedmma.data.pixels.device_images import DeviceImages, Place
from pfedmma.data.pixels.ragged import STAGED, Crop, Crops
from tests.support.matrix_products import crop_resize
from tests.support.pictures import picture

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_images, "SMALLEST", 100)


def test_images_lie_end_to_end_until_the_budget_is_taken() -> None:
    images = [picture(4, 5 + i, i) for i in range(5)]  # 60, 72, 84, 96, 108 bytes
    kept = DeviceImages(CPU, 300)
    # Buffers of 100, 100 and 100 bytes: 60 | 72 | 84, and a fourth has no room.
    assert [kept.keep(i, image) for i, image in enumerate(images)] == [True, True, True, False, False]
    assert kept.find(2) == Place(2, 0, 4, 7) and kept.find(3) is None
    assert kept.taken == 300 and kept.bytes_held == 216
    assert kept.keep(0, images[4]) and kept.bytes_held == 216  # it is there, and stays what it is
    for i in range(3):
        place = kept.find(i)
        assert place is not None and torch.equal(kept.image(place), images[i])


def test_buffers_grow_and_small_images_share_one() -> None:
    kept = DeviceImages(CPU, 10_000)
    images = [picture(3, 3, i) for i in range(20)]  # 27 bytes each: 3 in 100 bytes, 3 in 100, 7 in 200, 14 in 400
    assert all(kept.keep(i, image) for i, image in enumerate(images))
    assert [len(buffer) for buffer in kept.buffers] == [100, 100, 200, 400]
    assert kept.find(1) == Place(0, 27, 3, 3) and kept.find(19) == Place(3, 6 * 27, 3, 3)
    assert kept.keep("large", picture(40, 40)) and len(kept.buffers[-1]) == 4800  # one that is larger than all before it


def test_a_part_of_the_budget() -> None:
    kept = DeviceImages(CPU, 200)
    assert kept.keep(0, picture(5, 5), part=0.5) and not kept.keep(1, picture(5, 5), part=0.5) and kept.keep(1, picture(5, 5))


def test_without_a_budget_nothing_is_kept() -> None:
    kept = DeviceImages(CPU, 0)
    assert not kept.keep(0, picture(1, 1)) and kept.taken == 0


def test_a_device_without_memory_is_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = DeviceImages(CPU, 1000)
    assert kept.keep(0, picture(5, 5))

    def none_left(*args: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", none_left)
        assert not kept.keep(1, picture(5, 5))
    assert not kept.keep(1, picture(5, 5)) and kept.budget == 100  # what it has is left for training
    assert kept.keep(2, picture(2, 2))  # 12 of the 25 bytes that were free


def test_crops_of_kept_and_staged_images() -> None:
    images = [picture(20 + i, 30, i) for i in range(4)]
    kept = DeviceImages(CPU, 1e6)
    assert kept.keep("a", images[0]) and kept.keep("b", images[1]) and kept.keep("c", images[2])
    places = [place for key in ("c", "a") if (place := kept.find(key))]
    box = (2, 3, 15, 12)
    part = images[3][:, 2:17, 3:15]
    crops = Crops.from_list([*(place.crop(box, 1) for place in places), Crop(STAGED, 0, 15 * 12, 12, 15, 12, 1)])
    made = kept.crop_resize(end_to_end([part]), crops, 10)
    flip = torch.tensor([True])
    wanted = [crop_resize(images[i][None], torch.tensor([box]), flip, 10) for i in (2, 0, 3)]
    assert (made.int() - torch.cat(wanted).int()).abs().max() <= 1


def test_two_threads_keep_every_image_once() -> None:
    kept, images = DeviceImages(CPU, 1e6), [picture(3, 4 + i, i) for i in range(60)]

    def keep() -> None:
        for i, image in enumerate(images):
            assert kept.keep(i, image)

    threads = [threading.Thread(target=keep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept.bytes_held == sum(image.numel() for image in images)
    assert all(torch.equal(kept.image(place), image) for i, image in enumerate(images) if (place := kept.find(i)))
