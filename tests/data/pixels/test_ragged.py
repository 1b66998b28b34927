"""Crops of images that lie end to end: as the crop of one image after another, and as two matrix products make them."""

from __future__ import annotations

import pytest
import torch

from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.pixels import ragged
from pfedmma.data.pixels.crop import random_crop
from pfedmma.data.pixels.ragged import STAGED, Crop, Crops, crop_resize, cubic
from tests.support import matrix_products
from tests.support.laid_out import drawn, laid_out
from tests.support.pictures import picture, smooth_pictures

ODD = [(1, 1), (1, 40), (3, 200), (200, 3), (5, 5)]


@pytest.mark.parametrize("size", [32, 224])
def test_crops_equal_those_of_one_image_after_another(size: int) -> None:
    sizes = torch.randint(40, 300, (12, 2), generator=torch.Generator().manual_seed(0)).tolist()
    pictures = smooth_pictures(sizes)
    draws, flips, boxes = drawn(pictures)
    preprocess = Preprocess(size, (0.5,) * 3, (0.5,) * 3)
    wanted = torch.stack([random_crop(p, preprocess, draw, bool(flip)) for p, draw, flip in zip(pictures, draws, flips, strict=True)])
    difference = (crop_resize(*laid_out(pictures, boxes, flips), size).int() - wanted.int()).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.05  # whole levels: rounding falls differently now and then
    assert bool(flips.any()) and not bool(flips.all())


@pytest.mark.parametrize("at_once", [1, 1 << 25])
def test_crops_of_any_shape_equal_two_matrix_products(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "MOST_AT_ONCE", at_once)  # a column at a time, or all
    pictures = [picture(h, w, i) for i, (h, w) in enumerate([*ODD, (90, 70), (30, 33), (64, 150)])]
    _, flips, boxes = drawn(pictures)
    one_by_one = [
        matrix_products.crop_resize(p[None], torch.tensor([box]), flip[None], 30)
        for p, box, flip in zip(pictures, boxes, flips, strict=True)
    ]
    difference = (crop_resize(*laid_out(pictures, boxes, flips), 30).int() - torch.cat(one_by_one).int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 1e-3


def test_a_crop_of_its_own_size_stays_as_it_is() -> None:
    image = picture(20, 20)
    for flip in (0, 1):
        made = crop_resize([image.flatten()], Crops.from_list([Crop(STAGED, 0, 400, 20, 20, 20, flip)]), 20)
        assert torch.equal(made[0], image.flip(-1) if flip else image)


def test_nothing_around_a_crop_is_read() -> None:
    image = torch.full((3, 9, 9), 255, dtype=torch.uint8)
    image[:, 2:7, 3:7] = 10
    made = crop_resize([image.flatten()], Crops.from_list([Crop(STAGED, 2 * 9 + 3, 81, 9, 5, 4, 0)]), 16)
    assert bool((made == 10).all())


def test_no_crops() -> None:
    assert crop_resize([torch.empty(0, dtype=torch.uint8)], Crops.from_list([]), 8).shape == (0, 3, 8, 8)


def test_nothing_of_the_crops_has_to_be_known_that_lies_on_the_device() -> None:
    """On the meta device there is nothing to be known: whoever asks for a value ends with an error."""
    crops = Crops.from_list([Crop(STAGED, 0, 400, 20, 20, 20, 0), Crop(0, 0, 400, 20, 10, 30, 1)])
    there = Crops(crops.table.to("meta"), crops.rows, crops.longest)
    buffers = [torch.empty(2000, dtype=torch.uint8, device="meta") for _ in range(2)]
    assert crop_resize(buffers, there, 8).shape == (2, 3, 8, 8)


def test_weights_of_the_oracle_by_hand() -> None:
    # Four pixels to two: each output pixel is centred between two input pixels, and the kernel is twice as wide: at distances 0.25,
    # 0.75, 1.25 of it, and mirrored. Weights sum to 1, and the second row mirrors the first.
    mix = matrix_products.weights(torch.tensor([0.0]), torch.tensor([4.0]), 4, 2)[0]
    raw = cubic(torch.tensor([0.25, 0.25, 0.75, 1.25]))
    assert torch.allclose(mix[0], raw / raw.sum())
    assert torch.allclose(mix[1], mix[0].flip(0))
    # A crop reads nothing outside itself.
    outside = matrix_products.weights(torch.tensor([1.0]), torch.tensor([2.0]), 4, 8)[0]
    assert bool((outside[:, [0, 3]] == 0).all()) and torch.allclose(outside.sum(1), torch.ones(8))


def test_cubic_at_known_points() -> None:
    assert torch.allclose(cubic(torch.tensor([0.0, 1.0, 2.0, 3.0, 0.5, 1.5])), torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5625, -0.0625]))
