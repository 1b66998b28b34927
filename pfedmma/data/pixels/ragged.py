"""Crop, resize and flip images of unequal size that lie end to end: none is padded to another's size.

Antialiased bicubic resampling is separable: every output row is a fixed mix of input rows, every output column of input columns. The
mix is that of PIL and of torchvision's ``antialias=True`` (cubic with a = -0.5, widened by the scale when shrinking). Here it is written in
operations of torch, for any device; `ragged_kernel` is one kernel for a GPU. Both read images where they lie: in buffers that are kept on
the device, or in one that came with the batch.

Shape legend: n crops, R their rows of pixels in all, S pixels a side of the result, T pixels that an output pixel is mixed of at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

STAGED = -1  # the buffer that came with the batch
MOST_AT_ONCE = 1 << 25  # numbers of an intermediate result


class Crop(NamedTuple):
    """Where the pixels of a crop lie: a row of `Crops`.

    ``buffer``: position among the buffers, or `STAGED`. In bytes, ``start``: of its upper left pixel in that buffer, ``plane`` and ``row``:
    how far away the next channel and the next row are. ``height`` and ``width`` in pixels. ``flip``: 1 to mirror it, else 0.
    """

    buffer: int
    start: int
    plane: int
    row: int
    height: int
    width: int
    flip: int


@dataclass(frozen=True)
class Crops:
    """``table`` int64 [n,7], a `Crop` a row. ``rows`` (R) and ``longest``, the longest side, are known to the host without a look at it."""

    table: Tensor
    rows: int
    longest: int

    @classmethod
    def from_list(cls, crops: Sequence[Crop]) -> Crops:
        longest = max((max(crop.height, crop.width) for crop in crops), default=0)
        return cls(torch.tensor(crops, dtype=torch.long).view(-1, len(Crop._fields)), sum(crop.height for crop in crops), longest)


def cubic(x: Tensor) -> Tensor:
    """The cubic convolution kernel with a = -0.5; zero from 2 on."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


def crop_resize(buffers: Sequence[Tensor], crops: Crops, size: int) -> Tensor:
    """The crops brought to S x S.

    Args:
        buffers: uint8 [bytes] each, the one that came with the batch last; on the device of the crops. size: S.

    Returns:
        uint8 [n,3,S,S].
    """
    table, device = crops.table, crops.table.device
    buffer, start, plane, stride, height, width, flip = table.unbind(1)
    first = height.cumsum(0) - height  # of each crop's rows among all
    crop = torch.repeat_interleave(torch.arange(len(table), device=device), height, output_size=crops.rows)
    row = start[crop] + (torch.arange(crops.rows, device=device) - first[crop]) * stride[crop]
    starts = row[:, None] + torch.arange(3, device=device) * plane[crop][:, None]  # [R,3]
    taps = math.ceil(4.0 * max(crops.longest / size, 1.0)) + 1
    down = _mix(height, torch.arange(size, device=device).expand(len(table), size), size, taps)
    made = []
    for columns in torch.arange(size, device=device).split(max(1, MOST_AT_ONCE // max(1, max(3, taps) * crops.rows))):
        columns = torch.where(flip[:, None] == 1, size - 1 - columns, columns)
        across = _mix(width, columns, size, taps)
        narrow = _across(buffers, buffer[crop], starts, (across[0][crop], across[1][crop]))
        made.append(_down(narrow, first, down))
    return torch.cat(made, dim=-1).to(torch.uint8)


def _mix(length: Tensor, at: Tensor, size: int, taps: int) -> tuple[Tensor, Tensor]:
    """Which pixels of an axis of ``length`` [n] make the output pixels ``at`` [n,m], and their weights: both [n,m,T]."""
    scale = (length.float() / size)[:, None]
    wide = scale.clamp(min=1.0)
    centre = (at + 0.5) * scale
    pixels = (centre - 2.0 * wide + 0.5).floor().clamp(min=0.0)[..., None] + torch.arange(taps, device=at.device)
    mix = cubic((pixels + 0.5 - centre[..., None]) / wide[..., None]) * (pixels < length[:, None, None])
    return torch.minimum(pixels.long(), length[:, None, None] - 1), mix / mix.sum(dim=-1, keepdim=True)


def _across(buffers: Sequence[Tensor], buffer: Tensor, starts: Tensor, mix: tuple[Tensor, Tensor]) -> Tensor:
    """Rows [R,3] at ``starts`` brought to the columns of ``mix`` [R,m,T]: [R,3,m] in whole levels, as PIL has them between the passes."""
    pixels, weights = mix
    narrow = torch.zeros(*starts.shape, pixels.shape[1], device=starts.device)
    for tap in range(pixels.shape[2]):
        places = starts[..., None] + pixels[:, None, :, tap]
        for number, held in enumerate(buffers):
            if held.numel():
                here = (buffer == (STAGED if number == len(buffers) - 1 else number))[:, None, None]
                narrow += torch.where(here, held[places * here] * weights[:, None, :, tap], 0.0)
    return narrow.round_().clamp_(0.0, 255.0)


def _down(narrow: Tensor, first: Tensor, mix: tuple[Tensor, Tensor]) -> Tensor:
    """Columns [R,3,m] brought to the output rows of ``mix`` [n,S,T]: [n,3,S,m]. ``first`` [n]: each crop's first row."""
    pixels, weights = mix
    made = torch.zeros(*pixels.shape[:2], *narrow.shape[1:], device=narrow.device)
    for tap in range(pixels.shape[2]):
        made += narrow[first[:, None] + pixels[..., tap]] * weights[..., tap, None, None]
    return made.round_().clamp_(0.0, 255.0).transpose(1, 2)
