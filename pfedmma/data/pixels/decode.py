"""From an image file to pixels: any picture that PIL reads, upright and in RGB."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pfedmma.data.sources.base import Unreadable

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: Path) -> Tensor:
    """Image file -> uint8 [3,H,W], upright, RGB.

    Raises:
        Unreadable: the file cannot be read as an image; the message names it.
    """
    try:
        with Image.open(path) as image:
            turn = _TURNS.get(_orientation(image))
            upright = _to_rgb(image) if turn is None else _to_rgb(image).transpose(turn)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"cannot read the image {path}: {error}; repair or replace the file") from None
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB; 16-bit grey is scaled, where PIL by itself would cut it off at white."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none; other tags, broken or not, are left alone."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (ValueError, TypeError, SyntaxError, struct.error):
        return 1
