"""The images of a source at a backbone's size: reproducible, each file read once, normalised as open_clip does it."""

from __future__ import annotations

import os
from collections import Counter

import open_clip
import pytest
import torch
from torch import Tensor

from pfedmma.clip import tiny
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.partition.camera import Camera, camera
from pfedmma.data.pixels import device_images
from pfedmma.data.pixels import pixels as pixels_module
from pfedmma.data.pixels.crop import fit
from pfedmma.data.pixels.device_images import DeviceImages
from pfedmma.data.pixels.medium import printed, screen
from pfedmma.data.pixels.pixels import Pixels
from tests.support.pictures import CLIP, picture, pixels_of, to_pil


def test_preprocess_of_a_model_is_the_one_open_clip_gives_it():
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny.FOLDER}", load_weights=False)
    preprocess = Backbone.freeze(model).preprocess
    image = picture(70, 100)
    ours = pixels_of([image], "none", None, preprocess)
    torch.testing.assert_close(ours.normalise(ours.fitted("test", torch.tensor([0])))[0], transform(to_pil(image)), atol=1e-5, rtol=0)


def test_training_images_follow_from_the_generator_alone():
    images = [picture(40 + i, 60, i) for i in range(6)]
    batch = torch.tensor([4, 1, 5])

    def drawn(pixels: Pixels, seed: int) -> Tensor:
        return pixels.training(batch, torch.Generator().manual_seed(seed))

    fresh, used = pixels_of(images, "crop"), pixels_of(images, "crop")
    # Another rank has other images in memory, a generator of its own in another state, and has drawn for other clients before.
    used.training(torch.tensor([5, 0, 2, 4]), torch.Generator().manual_seed(9))
    used.fitted("test", torch.tensor([3]))
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    assert torch.equal(drawn(fresh, 7), drawn(used, 7))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(drawn(fresh, 7), drawn(fresh, 8))


def test_every_training_image_gets_its_own_crop_and_half_are_flipped():
    images = [picture(50, 50)] * 64
    pixels = pixels_of(images, "crop", None, Preprocess(32, CLIP.mean, CLIP.std))
    batch = pixels.training(torch.arange(64), torch.Generator().manual_seed(0))
    assert batch.shape == (64, 3, 32, 32) and batch.dtype == torch.uint8
    assert len({row.numpy().tobytes() for row in batch}) == 64
    # A ramp from left to right tells which pictures are mirrored.
    ramp = torch.arange(0, 250, 5, dtype=torch.uint8).expand(3, 50, 50)
    rising = pixels_of([ramp], "crop").training(torch.zeros(400, dtype=torch.long), torch.Generator().manual_seed(0)).float()
    share = (rising[..., -1].mean(dim=(1, 2)) < rising[..., 0].mean(dim=(1, 2))).float().mean()
    assert 0.4 < share < 0.6


def test_without_augmentation_training_sees_what_evaluation_sees():
    images = [picture(50, 70, i) for i in range(3)]
    pixels = pixels_of(images, "none")
    batch = torch.tensor([2, 0])
    assert torch.equal(pixels.training(batch, torch.Generator()), torch.stack([fit(images[i], CLIP) for i in (2, 0)]))


@pytest.mark.parametrize("augment", ["crop", "none"])
def test_every_file_is_decoded_at_most_once(augment: str):
    reads: Counter = Counter()
    pixels = pixels_of([picture(30, 40, i) for i in range(4)], augment, reads, Preprocess(16, CLIP.mean, CLIP.std))
    gen = torch.Generator().manual_seed(0)
    assert not reads  # nothing is decoded before it is asked for
    pixels.fitted("train", torch.tensor([3]))
    for _ in range(3):
        pixels.training(torch.tensor([0, 1, 1]), gen)
        for split in ("train", "val", "test"):
            pixels.fitted(split, torch.tensor([2, 0, 2]))
    pixels.training(torch.tensor([3, 2]), gen)
    assert set(reads) == {*(("train", i) for i in range(4)), *((split, i) for split in ("val", "test") for i in (0, 2))}
    assert set(reads.values()) == {1}


def test_normalise_sees_through_each_clients_camera():
    images = torch.stack([picture(8, 8, i) for i in range(2)]).expand(3, 2, 3, 8, 8)  # clients, images
    cameras = [camera(0, client, 1.0, "hue") for client in range(3)]
    pixels = pixels_of([], "none")
    seen = pixels.normalise(images, Camera.stacked(cameras))
    for client in range(3):
        for i in range(2):
            colour = (images[client, i].float() / 255).permute(1, 2, 0) @ cameras[client].colours.T
            expected = (colour.clamp(0, 1) - torch.tensor(CLIP.mean)) / torch.tensor(CLIP.std)
            torch.testing.assert_close(seen[client, i], expected.permute(2, 0, 1), atol=1e-5, rtol=0)
    gray = torch.full((3, 3, 4, 4), 77, dtype=torch.uint8)
    torch.testing.assert_close(pixels.normalise(gray, cameras[0]), pixels.normalise(gray), atol=1e-5, rtol=0)


def test_normalise_prints_before_a_camera_sees():
    """The pictures are in the medium; cameras look at them."""
    own = camera(0, 1, 0.3)
    small = Preprocess(32, CLIP.mean, CLIP.std)
    plain, both = (pixels_of([], "none", None, small, medium) for medium in (0.0, 0.5))
    image = picture(32, 32, 0)[None]
    black, range_ = torch.tensor(CLIP.mean).view(3, 1, 1), torch.tensor(CLIP.std).view(3, 1, 1)
    prints = printed(image.float() / 255, 0.5, screen(32))
    torch.testing.assert_close(both.normalise(image), (prints - black) / range_)
    torch.testing.assert_close(both.normalise(image, own), (own.see(prints) - black) / range_)
    torch.testing.assert_close(plain.normalise(image, own), (own.see(image.float() / 255) - black) / range_)


def test_a_batch_of_photographs_is_never_in_memory_as_a_whole(monkeypatch: pytest.MonkeyPatch):
    pixels = pixels_of([picture(20, 30, i) for i in range(40)], "crop", None, Preprocess(8, CLIP.mean, CLIP.std))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    asked: list[int] = []
    real = pixels.decoded.many
    monkeypatch.setattr(pixels.decoded, "many", lambda indices: asked.append(len(indices)) or real(indices))
    whole = pixels.training(torch.arange(40), torch.Generator().manual_seed(0))
    assert asked == [8] * 5 and whole.shape == (40, 3, 8, 8)


def on_a_device(pixels: Pixels, budget: float) -> Pixels:
    """The same images handled as for a GPU: the CPU stands for it, with memory of its own."""
    pixels.on_device = DeviceImages(torch.device("cpu"), budget)
    return pixels


@pytest.mark.parametrize("budget", [0, 20_000, 1e6])
def test_a_gpu_makes_the_crops_that_the_host_makes_wherever_the_images_lie(budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them on the device, two of six (9,000 bytes and more each), or all."""
    monkeypatch.setattr(device_images, "SMALLEST", 1)
    images, small = [picture(60 + i, 50, i) for i in range(6)], Preprocess(8, CLIP.mean, CLIP.std)
    rows = torch.tensor([0, 3, 5, 1, 2, 4])
    host, device = pixels_of(images, "crop", None, small), on_a_device(pixels_of(images, "crop", reads := Counter(), small), budget)
    assert device.on_device is not None
    for step in range(3):
        draws, flips = host.draws(6, torch.Generator().manual_seed(step))
        staged = device.stage(rows, draws, flips)
        assert (device.finish(staged).int() - host.stage(rows, draws, flips).images.int()).abs().max() <= 2
        brought = [i for i in range(6) if device.on_device.find(i) is None]
        assert len(brought) == {0: 6, 20_000: 4, 1e6: 0}[budget]
        # What lies there is not brought again; of the rest, the crops alone.
        assert len(staged.images) <= sum(images[i].numel() for i in brought)
    assert set(reads.values()) == {1}


def test_where_images_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_images, "SMALLEST", 1)
    images, small = [picture(10, 10, i) for i in range(6)], Preprocess(8, CLIP.mean, CLIP.std)  # 300 bytes each; fitted, 192
    pixels = pixels_of(images, "crop", None, small)
    pixels.training(torch.arange(6), torch.Generator().manual_seed(0))
    pixels.fitted("test", torch.tensor([1, 2]))
    assert pixels.bytes_by_place() == {"cpu": 6 * 300 + 2 * 192, "disk": 0}
    device = on_a_device(pixels_of(images, "crop", None, small), 700)
    device.device = torch.device("meta")  # is told apart from the host by its name
    device.stage(torch.arange(6), *device.draws(6, torch.Generator().manual_seed(0)))
    assert device.bytes_by_place() == {"meta": 600, "cpu": 4 * 300, "disk": 0}


def test_test_images_stay_on_the_device_in_half_of_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_images, "SMALLEST", 1)
    small = Preprocess(8, CLIP.mean, CLIP.std)
    images = [picture(9, 12, i) for i in range(6)]
    pixels = on_a_device(pixels_of(images, "crop", None, small), 6 * 192)  # room for six fitted ones, three of tests
    asked: list[list[int]] = []
    real = pixels.fitted
    monkeypatch.setattr(pixels, "fitted", lambda split, indices: asked.append(indices.tolist()) or real(split, indices))
    few, many = torch.tensor([4, 1]), torch.arange(6)
    wanted = torch.stack([fit(image, small) for image in images])
    for keep, rows in ((False, few), (True, few), (True, few), (True, many), (True, many), (True, few)):
        assert torch.equal(pixels.tested("test", rows, keep), wanted[rows])
    assert asked == [[4, 1], [4, 1], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert pixels.on_device is not None and pixels.on_device.bytes_held == 3 * 192


@pytest.mark.parametrize("budget", [0, 1e9])
def test_one_very_large_photograph_does_not_set_the_size_of_a_batch(budget: float) -> None:
    """12 megapixels among 63 small pictures: padded to its size they would be 2.3 GB, and the weights of a resize more."""
    small = [picture(20, 30, i) for i in range(63)]
    large, to = torch.zeros(3, 3000, 4000, dtype=torch.uint8), Preprocess(32, CLIP.mean, CLIP.std)
    pixels = on_a_device(pixels_of([large, *small], "crop", None, to), budget)
    draws = torch.full((64, 10, 4), 0.9)  # crops of 91 % of the area
    staged = pixels.stage(torch.arange(64), draws, torch.zeros(64, dtype=torch.bool))
    assert len(staged.images) <= 3 * 32 * 32 + sum(image.numel() for image in small)
    assert budget or pixels.finish(staged).shape == (64, 3, 32, 32)


def test_a_large_part_is_made_small_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    images, small = [picture(60 + i, 50, i) for i in range(6)], Preprocess(8, CLIP.mean, CLIP.std)
    pixels = on_a_device(pixels_of(images, "crop", None, small), 0)
    draws, flips = pixels.draws(6, torch.Generator().manual_seed(0))
    monkeypatch.setattr(pixels_module, "LARGE", 192)
    staged = pixels.stage(torch.arange(6), draws, flips)
    assert len(staged.images) == 6 * 192
    assert torch.equal(pixels.finish(staged), pixels_of(images, "crop", None, small).stage(torch.arange(6), draws, flips).images)
