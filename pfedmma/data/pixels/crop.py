"""Images at a backbone's size: as at evaluation, or a random part of them.

A box is (top, left, height, width) in pixels of the image as decoded.

Shape legend: n images, H x W pixels as decoded, S pixels a side at the backbone's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pfedmma.clip.preprocess import Preprocess
from pfedmma.system.lazy import Library

transforms, tv = Library("torchvision.transforms"), Library("torchvision.transforms.v2.functional")

MOST_PIXELS = 1 << 25  # of a picture resized for the centre crop
CROP_SCALE = (0.08, 1.0)  # of the image's area
CROP_RATIO = (3.0 / 4.0, 4.0 / 3.0)


def end_to_end(parts: Sequence[Tensor]) -> Tensor:
    """Parts of images uint8 [3,height,width], of unequal size, one after another: uint8 [bytes]."""
    sizes = [part.numel() for part in parts]
    whole = torch.empty(sum(sizes), dtype=torch.uint8)
    for place, part in zip(whole.split(sizes), parts, strict=True):
        place.view(part.shape).copy_(part)
    return whole


def fit(image: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [3,H,W] -> uint8 [3,S,S], through PIL as open_clip does it: shorter side to S and centre crop, or squashed."""
    size = preprocess.size
    if image.shape[1:] == (size, size):
        return image
    mode = transforms.InterpolationMode(preprocess.interpolation)
    if preprocess.resize_mode != "squash":
        image = _middle(image, size)
    picture = tv.to_pil_image(image)
    if preprocess.resize_mode == "squash":
        picture = tv.resize(picture, [size, size], interpolation=mode)
    else:
        picture = tv.center_crop(tv.resize(picture, [size], interpolation=mode), [size, size])
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _middle(image: Tensor, size: int) -> Tensor:
    """The middle of a picture so long that it would grow to gigabytes; the centre crop shows no more of it."""
    short, long = sorted(image.shape[1:])
    if long / short * size * size <= MOST_PIXELS:
        return image
    length = 9 * short + (long - short) % 2
    lengths = [min(side, length) for side in image.shape[1:]]
    top, left = ((side - kept) // 2 for side, kept in zip(image.shape[1:], lengths, strict=True))
    return image[:, top : top + lengths[0], left : left + lengths[1]]


def random_crop(image: Tensor, preprocess: Preprocess, draws: Tensor, flip: bool) -> Tensor:
    """Random resized crop (area 8-100 %, aspect 3/4-4/3, ten tries, then the centre) and horizontal flip.

    Args:
        image: uint8 [3,H,W]. draws: [10,4] uniform numbers, one row a try: area, aspect, top, left.

    Returns:
        uint8 [3,S,S].
    """
    top, left, height, width = crop_box(image.shape[1], image.shape[2], draws)
    size = [preprocess.size, preprocess.size]
    mode = transforms.InterpolationMode(preprocess.interpolation)
    part = tv.resized_crop(image, top, left, height, width, size, interpolation=mode, antialias=True)
    return part.flip(-1) if flip else part


def crop_box(height: int, width: int, draws: Tensor) -> tuple[int, int, int, int]:
    """The box of a random crop out of an image of this size, distributed as in torchvision's ``RandomResizedCrop``.

    Args:
        draws: [10,4] as for `random_crop`.
    """
    low, high = (math.log(r) for r in CROP_RATIO)
    for area, aspect, top, left in draws.tolist():
        target = height * width * (CROP_SCALE[0] + area * (CROP_SCALE[1] - CROP_SCALE[0]))
        ratio = math.exp(low + aspect * (high - low))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    ratio = width / height
    w = width if ratio <= CROP_RATIO[1] else round(height * CROP_RATIO[1])
    h = height if ratio >= CROP_RATIO[0] else round(width / CROP_RATIO[0])
    return (height - h) // 2, (width - w) // 2, h, w
