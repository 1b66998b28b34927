"""Pictures end to end in buffers, and random crops of them: for the tests of ragged crops. Imports little, for processes of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from pfedmma.data.pixels.crop import crop_box, end_to_end
from pfedmma.data.pixels.ragged import STAGED, Crop, Crops

Box = tuple[int, int, int, int]


def drawn(pictures: list[Tensor]) -> tuple[Tensor, Tensor, list[Box]]:
    """Draws, flips and boxes of random crops."""
    gen = torch.Generator().manual_seed(1)
    draws, flips = torch.rand(len(pictures), 10, 4, generator=gen), torch.rand(len(pictures), generator=gen) < 0.5
    return draws, flips, [crop_box(p.shape[1], p.shape[2], draw) for p, draw in zip(pictures, draws, strict=True)]


def laid_out(pictures: list[Tensor], boxes: list[Box], flips: Tensor) -> tuple[list[Tensor], Crops]:
    """Whole pictures in three buffers, two that are kept and one that is staged; and the crops in ``boxes``."""
    crops, ends = [], [0, 0, 0]
    for i, (image, (top, left, height, width)) in enumerate(zip(pictures, boxes, strict=True)):
        _, h, w = image.shape
        start = ends[i % 3] + top * w + left
        crops.append(Crop(i % 3 if i % 3 < 2 else STAGED, start, h * w, w, height, width, int(flips[i])))
        ends[i % 3] += image.numel()
    return [end_to_end(pictures[number::3]) for number in range(3)], Crops.from_list(crops)
