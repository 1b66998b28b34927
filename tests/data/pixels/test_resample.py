"""Cut and resized by matrix products: as the crop of one image after another."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.pixels.crop import crop_box, from_corner, random_crop, side_by_side
from pfedmma.data.pixels.resample import crop_resize, cubic, weights


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
