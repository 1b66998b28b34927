"""From files to pixels: decoding, the backbone's own preprocessing, augmentation and the clients' cameras.

Shape legend: N images, S pixels a side (of the backbone).
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from pfedmma import rng
from pfedmma.clip.backbone import Preprocess
from pfedmma.data.sources import Source, Unreadable

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
CROP_SCALE = (0.08, 1.0)  # of the image's area
CROP_RATIO = (3.0 / 4.0, 4.0 / 3.0)


def decode(path: Path) -> Tensor:
    """Image file -> uint8 [3, H, W], upright, RGB.

    Raises:
        UserError: the file cannot be read as an image; the message names it.
    """
    try:
        with Image.open(path) as image:
            turn = _TURNS.get(_orientation(image))
            upright = image.convert("RGB") if turn is None else image.convert("RGB").transpose(turn)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable(f"cannot read the image {path}: {error}; repair or replace the file") from None
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none; other tags, broken or not, are left alone."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (ValueError, TypeError, SyntaxError, struct.error):
        return 1


class Pixels:
    """The images of a source, at a backbone's size; every image is decoded at most once.

    Test images are kept as the backbone's own preprocessing leaves them, training images as decoded.
    """

    def __init__(self, source: Source, preprocess: Preprocess, augment: str, device: torch.device) -> None:
        self.source, self.preprocess, self.augment, self.device = source, preprocess, augment, device
        self._decoded: dict[tuple[str, int], Tensor] = {}
        self._fitted: dict[tuple[str, int], Tensor] = {}
        self._mean = torch.tensor(preprocess.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(preprocess.std, device=device).view(3, 1, 1)

    def fitted(self, split: str, indices: Tensor) -> Tensor:
        """[n] -> [n,3,S,S] uint8, as open_clip's evaluation preprocessing makes them (before normalisation)."""
        return torch.stack([self._fit(split, i) for i in indices.tolist()])

    def training(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """[n] -> [n,3,S,S] uint8 of the training split: random crop and flip, or just fitted without augmentation."""
        if self.augment == "none":
            return self.fitted("train", indices)
        draws = torch.rand(len(indices), 10, 4, generator=generator)
        flips = torch.rand(len(indices), generator=generator) < 0.5
        return torch.stack(
            [
                random_crop(self._read("train", i), self.preprocess, draw, bool(flip))
                for i, draw, flip in zip(indices.tolist(), draws, flips, strict=True)
            ]
        )

    def normalise(self, images: Tensor, camera: Tensor | None = None) -> Tensor:
        """uint8 [..., 3,S,S] -> float on the device, normalised; seen through ``camera`` [..., 3,3] if there is one."""
        x = images.to(self.device, non_blocking=True).float() / 255.0
        if camera is not None:
            x = (camera.to(self.device) @ x.flatten(-2)).clamp(0.0, 1.0).view(x.shape)
        return (x - self._mean) / self._std

    def _read(self, split: str, index: int) -> Tensor:
        key = (split, index)
        if key not in self._decoded:
            self._decoded[key] = self.source.splits[split].read(index)
        return self._decoded[key]

    def _fit(self, split: str, index: int) -> Tensor:
        key = (split, index)
        if key not in self._fitted:
            keep = split == "train" and self.augment != "none"
            image = self._read(split, index) if keep else self.source.splits[split].read(index)
            self._fitted[key] = fit(image, self.preprocess)
        return self._fitted[key]


def fit(image: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [3,H,W] -> uint8 [3,S,S], through PIL as open_clip does it: shorter side to S and centre crop, or squashed."""
    size = preprocess.size
    if image.shape[1:] == (size, size):
        return image
    mode = InterpolationMode(preprocess.interpolation)
    picture = tv.to_pil_image(image)
    if preprocess.resize_mode == "squash":
        picture = tv.resize(picture, [size, size], interpolation=mode)
    else:
        picture = tv.center_crop(tv.resize(picture, [size], interpolation=mode), [size, size])
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def random_crop(image: Tensor, preprocess: Preprocess, draws: Tensor, flip: bool) -> Tensor:
    """Random resized crop (area 8-100 %, aspect 3/4-4/3, ten tries, then the centre) and horizontal flip.

    Args:
        image: uint8 [3,H,W]. draws: [10, 4] uniform numbers, one row a try: area, aspect, top, left.
    """
    top, left, height, width = crop_box(image.shape[1], image.shape[2], draws)
    size = [preprocess.size, preprocess.size]
    mode = InterpolationMode(preprocess.interpolation)
    out = tv.resized_crop(image, top, left, height, width, size, interpolation=mode, antialias=True)
    return out.flip(-1) if flip else out


def crop_box(height: int, width: int, draws: Tensor) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the crop, distributed as in torchvision's ``RandomResizedCrop``."""
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


def camera(seed: int, client: int, strength: float) -> Tensor:
    """A client's own camera: a colour matrix [3,3] that turns the hue and greys out, the same for all its images.

    ``strength`` 0..1: the hue turns by up to ``strength`` x 180 degrees either way, and up to ``strength`` of the colour is lost.
    """
    draw = torch.rand(2, generator=rng.generator(seed, "camera", client)).tolist()
    angle, grey = (2.0 * draw[0] - 1.0) * strength * math.pi, draw[1] * strength
    cos, sin = math.cos(angle), math.sin(angle)
    # Rotation about the grey axis (1,1,1)/sqrt(3), then a mix with the mean of the channels.
    along = torch.full((3, 3), 1.0 / 3.0)
    across = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    turn = cos * torch.eye(3) + (1.0 - cos) * along + sin * across
    return (1.0 - grey) * turn + grey * along
