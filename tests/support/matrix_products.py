"""An oracle for crops: cut, resized and flipped by two matrix products of dense weights, images padded to the largest.

Shape legend: n images, H x W pixels of the padded images, S pixels a side of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfedmma.data.pixels.ragged import cubic


def weights(start: Tensor, length: Tensor, source: int, size: int, flip: Tensor | None = None) -> Tensor:
    """Mixing weights of one axis [n,S,source] for crops [start, start + length) of an axis of ``source`` pixels.

    Args:
        start, length: [n] in pixels of that axis. size: S. flip: [n] bool, mirror the result.
    """
    scale = (length / size)[:, None, None]
    pixel = torch.arange(size, device=start.device, dtype=torch.float32)
    centre = (pixel[None, :, None] + 0.5) * scale + start[:, None, None]
    at = torch.arange(source, device=start.device, dtype=torch.float32) + 0.5
    mix = cubic((at - centre) / scale.clamp(min=1.0))
    inside = (at > start[:, None, None]) & (at < (start + length)[:, None, None])
    mix = mix * inside
    mix = mix / mix.sum(dim=-1, keepdim=True)
    if flip is None:
        return mix
    return torch.where(flip[:, None, None], mix.flip(1), mix)


def crop_resize(images: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cut ``boxes`` out of ``images`` and bring them to S x S.

    Args:
        images: uint8 [n,3,H,W], padded at the bottom and right. boxes: [n,4] top, left, height, width. flips: [n] bool. size: S.

    Returns:
        uint8 [n,3,S,S].
    """
    top, left, height, width = boxes.float().unbind(1)
    rows = weights(top, height, images.shape[2], size)
    columns = weights(left, width, images.shape[3], size, flips)
    narrow = (images.float() @ columns.transpose(1, 2)[:, None]).round_().clamp_(0.0, 255.0)  # whole levels between the passes, as in PIL
    return (rows[:, None] @ narrow).round_().clamp_(0.0, 255.0).to(torch.uint8)
