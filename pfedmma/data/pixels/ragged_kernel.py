"""`ragged.crop_resize` as one Triton kernel: each program makes a tile of one channel of one crop, and keeps nothing in between.

Imported on a GPU alone: Triton comes with torch's CUDA build.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 32  # output pixels a side
AT_ONCE = 16  # rows of the crop


def crop_resize(addresses: Tensor, staged: Tensor, table: Tensor, size: int) -> Tensor:
    """The crops of ``table`` int64 [n,7], see `ragged.Crops`, brought to S x S.

    Args:
        addresses: int64, of the buffers that are kept. staged: uint8 [bytes], the one that came with the batch. size: S.

    Returns:
        uint8 [n,3,S,S] on the device of the table.
    """
    made = torch.empty(len(table), 3, size, size, dtype=torch.uint8, device=table.device)
    tiles = triton.cdiv(size, TILE)
    if len(table):
        _tile[(len(table), 3, tiles * tiles)](addresses, staged, table, made, size, TILE=TILE, AT_ONCE=AT_ONCE)
    return made


@triton.jit
def _cubic(x):
    x = tl.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))


@triton.jit
def _tile(addresses, staged, table, made, size, TILE: tl.constexpr, AT_ONCE: tl.constexpr):
    crop, channel, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles = tl.cdiv(size, TILE)
    row = table + crop.to(tl.int64) * 7
    buffer, start, plane, stride = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    height, width, flip = tl.load(row + 4).to(tl.int32), tl.load(row + 5).to(tl.int32), tl.load(row + 6)
    kept = tl.load(addresses + tl.maximum(buffer, 0))
    address = tl.where(buffer < 0, staged.to(tl.int64), kept)
    pixels = address.to(tl.pointer_type(tl.uint8)) + start + channel * plane
    ys = (tile // tiles) * TILE + tl.arange(0, TILE)
    xs = (tile % tiles) * TILE + tl.arange(0, TILE)

    scale_x, scale_y = width.to(tl.float32) / size, height.to(tl.float32) / size
    wide_x, wide_y = tl.maximum(scale_x, 1.0), tl.maximum(scale_y, 1.0)
    centre_x, centre_y = (xs + 0.5) * scale_x, (ys + 0.5) * scale_y
    left = tl.maximum(tl.floor(centre_x - 2.0 * wide_x + 0.5), 0.0).to(tl.int32)
    taps = tl.ceil(4.0 * wide_x).to(tl.int32) + 1
    sum_x = tl.zeros([TILE], tl.float32)
    for tap in range(0, taps):
        sum_x += tl.where(left + tap < width, _cubic((left + tap + 0.5 - centre_x) / wide_x), 0.0)

    top_y = ((tile // tiles) * TILE + 0.5) * scale_y - 2.0 * wide_y
    end_y = ((tile // tiles) * TILE + TILE - 0.5) * scale_y + 2.0 * wide_y
    top = tl.maximum(tl.floor(top_y + 0.5), 0.0).to(tl.int32)
    end = tl.minimum(tl.ceil(end_y).to(tl.int32) + 1, height)
    sum_y = tl.zeros([TILE], tl.float32)
    mixed = tl.zeros([TILE, TILE], tl.float32)
    for first in range(top, end, AT_ONCE):
        rows = first + tl.arange(0, AT_ONCE)
        narrow = tl.zeros([AT_ONCE, TILE], tl.float32)
        for tap in range(0, taps):
            x = left + tap
            weight = tl.where(x < width, _cubic((x + 0.5 - centre_x) / wide_x), 0.0)
            there = (rows < height)[:, None] & (x < width)[None, :]
            level = tl.load(pixels + rows[:, None] * stride + x[None, :], mask=there, other=0)
            narrow += level.to(tl.float32) * weight[None, :]
        narrow = _whole(narrow / sum_x[None, :])  # whole levels between the passes, as in PIL
        weight_y = tl.where((rows < height)[None, :], _cubic((rows[None, :] + 0.5 - centre_y[:, None]) / wide_y), 0.0)
        sum_y += tl.sum(weight_y, axis=1)
        mixed += tl.dot(weight_y, narrow, input_precision="ieee")
    level = _whole(mixed / sum_y[:, None]).to(tl.uint8)

    column = tl.where(flip != 0, size - 1 - xs, xs)
    place = ((crop.to(tl.int64) * 3 + channel) * size + ys[:, None]) * size + column[None, :]
    tl.store(made + place, level, mask=(ys < size)[:, None] & (xs < size)[None, :])


@triton.jit
def _whole(level):
    return tl.minimum(tl.maximum(tl.floor(level + 0.5), 0.0), 255.0)
