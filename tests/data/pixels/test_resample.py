"""The two ways to cut and resize, per image and as matrix products, agree; unusual pictures are read as one sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.pixels.crop import crop_box, fit, from_corner, random_crop, side_by_side
from pfedmma.data.pixels.decode import decode
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.pixels.resample import crop_resize, cubic, weights
from pfedmma.data.sources.base import Source, Split

CPU = torch.device("cpu")


def smooth_pictures(count: int) -> list[torch.Tensor]:
    """Photograph-like pictures of unequal size: noise, blurred by enlarging it."""
    gen = torch.Generator().manual_seed(0)
    sizes = torch.randint(40, 300, (count, 2), generator=gen).tolist()
    return [tv.resize(torch.randint(256, (3, 12, 12), generator=gen).to(torch.uint8), size, antialias=True) for size in sizes]


@pytest.mark.parametrize("size", [32, 224])
def test_matrix_products_equal_the_crop_of_one_image_after_another(size: int):
    pictures, gen = smooth_pictures(12), torch.Generator().manual_seed(1)
    draws, flips = torch.rand(12, 10, 4, generator=gen), torch.rand(12, generator=gen) < 0.5
    boxes = torch.tensor([crop_box(p.shape[1], p.shape[2], draw) for p, draw in zip(pictures, draws, strict=True)])
    preprocess = Preprocess(size, (0.5,) * 3, (0.5,) * 3)
    wanted = torch.stack([random_crop(p, preprocess, draw, bool(flip)) for p, draw, flip in zip(pictures, draws, flips, strict=True)])
    got = crop_resize(side_by_side(pictures, boxes), from_corner(boxes), flips, size)
    difference = (got.int() - wanted.int()).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.05  # whole levels: rounding falls differently now and then
    assert bool(flips.any()) and not bool(flips.all())


def test_weights_by_hand():
    # Four pixels to two: each output pixel is centred between two input pixels, and the kernel is twice as wide: at distances 0.25,
    # 0.75, 1.25 of it, and mirrored. Weights sum to 1, and the second row mirrors the first.
    mix = weights(torch.tensor([0.0]), torch.tensor([4.0]), 4, 2)[0]
    raw = cubic(torch.tensor([0.25, 0.25, 0.75, 1.25]))
    assert torch.allclose(mix[0], raw / raw.sum())
    assert torch.allclose(mix[1], mix[0].flip(0))
    # A crop reads nothing outside itself.
    outside = weights(torch.tensor([1.0]), torch.tensor([2.0]), 4, 8)[0]
    assert bool((outside[:, [0, 3]] == 0).all()) and torch.allclose(outside.sum(1), torch.ones(8))


def test_cubic_at_known_points():
    assert torch.allclose(cubic(torch.tensor([0.0, 1.0, 2.0, 3.0, 0.5, 1.5])), torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5625, -0.0625]))


def test_sixteen_bit_grey_is_scaled_not_cut_off(tmp_path: Path):
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png")[0].tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode).save(tmp_path / f"white.{suffix}")
    image = decode(tmp_path / f"white.{suffix}")
    assert image.shape == (3, 7, 9) and int(image.min()) >= 254


@pytest.mark.parametrize("shape", [(3, 1, 4000), (3, 4000, 1), (3, 1, 1), (3, 3000, 4000), (3, 7, 1001)])
def test_thin_and_large_pictures_are_fitted_and_cut(shape: tuple[int, ...]):
    image = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    preprocess = Preprocess(32, (0.5,) * 3, (0.5,) * 3)
    assert fit(image, preprocess).shape == (3, 32, 32)
    for seed in range(5):
        draws = torch.rand(10, 4, generator=torch.Generator().manual_seed(seed))
        assert random_crop(image, preprocess, draws, False).shape == (3, 32, 32)


@pytest.mark.parametrize("length", [4000, 4001])
def test_only_the_middle_of_a_line_is_resized(length: int):
    # 1 x 4000 at 224 pixels would be 224 x 896,000; the centre crop shows a pixel or two of it.
    line = torch.arange(length).expand(3, 1, length) % 251
    got = fit(line.to(torch.uint8), Preprocess(224, (0.5,) * 3, (0.5,) * 3))
    middle = [int(line[0, 0, i]) for i in (length // 2 - 1, length // 2)]
    assert got.shape == (3, 224, 224)
    assert min(middle) - 1 <= int(got[0, :, 112].min()) and int(got[0, :, 112].max()) <= max(middle) + 1


def test_training_images_without_augmentation_are_fitted_ones():
    images = smooth_pictures(3)
    toy = Source("toy", ("a",), {"train": Split(torch.zeros(3, dtype=torch.long), images.__getitem__)})
    preprocess = Preprocess(16, (0.5,) * 3, (0.5,) * 3)
    got = Pixels(toy, preprocess, "none", CPU).training(torch.tensor([2, 0]), torch.Generator())
    assert torch.equal(got, torch.stack([fit(images[2], preprocess), fit(images[0], preprocess)]))
