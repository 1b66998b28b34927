"""From an image file to pixels: any picture of a format listed here, upright and in RGB.

Files are other people's. Only regular files are opened, only by decoders that start no other program (Pillow gives EPS to
Ghostscript), and a picture is looked at for its size before memory is taken for it.
"""

from __future__ import annotations

import os
import stat
import struct
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pfedmma.data.sources.base import Unreadable

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO", "ICO", "PCX", "QOI", "SGI", "TGA")
UNMARKED = ("TGA", "PCX")  # begin as many a file might, so they are looked for under their own suffix alone
MOST_PIXELS = 178_956_970  # of a picture in a file; where Pillow itself draws the line
ORDINARY = 1 << 23  # pixels; a picture of more is halved as it is decoded, until it has no more
SPARE = 2  # how many times as large as it shall be a JPEG still is when it is resized
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
# What Pillow's decoders raise on files that are broken or no images. A bomb is a picture that is too large.
_BROKEN = (OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, struct.error, Image.DecompressionBombError)


def decode(path: Path, least: int = 0) -> Tensor:
    """Image file -> uint8 [3,H,W], upright, RGB.

    A picture of more than `ORDINARY` pixels comes at a half, a quarter or an eighth of its height and width, whichever first has
    no more: far more than any crop of a backbone's size needs. With ``least``, one whose shorter side has more pixels than that is
    brought to it, antialiased bicubic; a JPEG of more than twice as many is decoded to a part of its size first.

    Raises:
        Unreadable: no regular file, no image of one of `FORMATS`, or one of more than `MOST_PIXELS`; the message names it.
    """
    try:
        with _opened(path) as file, Image.open(file, formats=_formats()) as image:
            _refuse_huge(image)
            turn = _TURNS.get(_orientation(image))
            size = image.size
            rgb = _shrunk(_to_rgb(_reduced(image, least)), size, least)
            upright = rgb if turn is None else rgb.transpose(turn)
    except Image.UnidentifiedImageError:
        raise Unreadable(f"cannot read the image {path}: it is none of {', '.join(_formats())}; repair or replace the file") from None
    except _BROKEN as error:
        raise Unreadable(f"cannot read the image {path}: {error}; repair or replace the file") from None
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


def is_image(path: Path) -> bool:
    """Whether a file begins as an image of one of `FORMATS`; its pixels are not decoded."""
    suffix = path.suffix.upper().removeprefix(".")
    marked = [name for name in _formats() if name not in UNMARKED or name == suffix]
    try:
        with _opened(path) as file, Image.open(file, formats=marked):
            return True
    except _BROKEN:
        return False


def _opened(path: Path) -> IO[bytes]:
    """A regular file; anything else is not waited for, and not opened where it can be seen before. Raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115, the caller's to close
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError("it is no regular file")


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the Pillow that is installed can decode."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _refuse_huge(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS}")


def _reduced(image: Image.Image, least: int) -> Image.Image:
    """The picture with at most `ORDINARY` pixels; a JPEG that has more is never there at its full size.

    With ``least``, a JPEG may come smaller, its shorter side still `SPARE` times that.
    """
    factor = max(_too_large(image), min(image.size) // (SPARE * least) if least else 1)
    if factor <= 1:
        return image
    image.draft(None, (image.width // factor, image.height // factor))  # decoded to a part of its size, where its format allows that
    if (left := _too_large(image)) > 1:
        return image.convert("I" if image.mode.startswith("I") else "RGB").reduce(left)
    return image


def _shrunk(image: Image.Image, size: tuple[int, int], least: int) -> Image.Image:
    """The picture with a shorter side of at most ``least`` pixels; as it is without ``least``. ``size``: width and height in the file."""
    short = min(size)
    if not 0 < least < short:
        return image
    factor = round(max(size) / max(image.size))
    seen = (0.0, 0.0, size[0] / factor, size[1] / factor)  # a side that is decoded to a part is rounded up, and ends beside the picture
    return image.resize((round(size[0] * least / short), round(size[1] * least / short)), Image.Resampling.BICUBIC, seen)


def _too_large(image: Image.Image) -> int:
    """By which of 1, 2, 4 and 8 its sides have to be divided."""
    return next((f for f in (1, 2, 4) if image.width * image.height <= ORDINARY * f * f), 8)


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
