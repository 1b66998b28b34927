"""From files to pixels: decoding, the backbone's own preprocessing, augmentation and the clients' cameras.

Shape legend: N images, S pixels a side (of the backbone).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from pfedmma import rng
from pfedmma.clip.backbone import Preprocess
from pfedmma.data.pixels.cache import DecodedImages, FittedImages
from pfedmma.data.pixels.resample import crop_resize
from pfedmma.data.sources.base import Source, Unreadable

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
MOST_PIXELS = 1 << 25  # of a picture resized for the centre crop
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


@dataclass(frozen=True)
class Staged:
    """Training images on their way to the device.

    ``images`` uint8 [n,3,S,S], ready; or [n,3,H,W], padded at the bottom and right, to be cut by ``boxes`` [n,4] (top, left, height, width)
    and mirrored by ``flips`` [n].
    """

    images: Tensor
    boxes: Tensor | None = None
    flips: Tensor | None = None


class Pixels:
    """The images of a source, at a backbone's size; every image is decoded at most once.

    Test images are kept as the backbone's own preprocessing leaves them, training images as decoded. ``stage`` may run in another
    thread than everything else.
    """

    def __init__(self, source: Source, preprocess: Preprocess, augment: str, device: torch.device, cache_gb: float = 8.0) -> None:
        self.source, self.preprocess, self.augment, self.device = source, preprocess, augment, device
        self.decoded = DecodedImages(source.splits["train"].read, cache_gb * 1e9)
        self._fitted: dict[str, FittedImages] = {}
        self._mean = torch.tensor(preprocess.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(preprocess.std, device=device).view(3, 1, 1)

    def fitted(self, split: str, indices: Tensor) -> Tensor:
        """[n] -> [n,3,S,S] uint8, as open_clip's evaluation preprocessing makes them (before normalisation)."""
        return self.images_of(split)[indices]

    def images_of(self, split: str, share: Path | None = None) -> FittedImages:
        """All images of a split at the backbone's size, made as they are asked for; ``share`` as in `FittedImages`."""
        if split not in self._fitted:
            count = len(self.source.splits[split].labels)
            # A training image that is also cut at random is decoded for both uses at once.
            read = self.decoded.__getitem__ if split == "train" and self.augment != "none" else self.source.splits[split].read
            self._fitted[split] = FittedImages(count, self.preprocess.size, lambda i: fit(read(i), self.preprocess), share)
        return self._fitted[split]

    def training(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """[n] -> [n,3,S,S] uint8 of the training split: random crop and flip, or just fitted without augmentation."""
        return self.finish(self.stage(indices, *self.draws(len(indices), generator)))

    def draws(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The random numbers of ``count`` augmentations: for the crops [n,10,4] and the flips [n]; empty without augmentation."""
        if self.augment == "none":
            return torch.empty(count, 0, 4), torch.zeros(count, dtype=torch.bool)
        return torch.rand(count, 10, 4, generator=generator), torch.rand(count, generator=generator) < 0.5

    def stage(self, indices: Tensor, draws: Tensor, flips: Tensor) -> Staged:
        """The host's part of making training images: all of it on the CPU, the gathering of pixels for a GPU."""
        if self.augment == "none":
            return Staged(self.fitted("train", indices))
        images = self.decoded.many(indices.tolist())
        if self.device.type == "cpu":
            cut = [random_crop(image, self.preprocess, draw, bool(flip)) for image, draw, flip in zip(images, draws, flips, strict=True)]
            return Staged(torch.stack(cut))
        boxes = torch.tensor([crop_box(image.shape[1], image.shape[2], draw) for image, draw in zip(images, draws, strict=True)])
        return Staged(_side_by_side(images, boxes), _from_corner(boxes), flips)

    def finish(self, staged: Staged) -> Tensor:
        """The device's part: [n,3,S,S] uint8 on the device."""
        images = staged.images.to(self.device, non_blocking=True)
        if staged.boxes is None or staged.flips is None:
            return images
        return crop_resize(images, staged.boxes.to(self.device), staged.flips.to(self.device), self.preprocess.size)

    def normalise(self, images: Tensor, camera: Tensor | None = None) -> Tensor:
        """uint8 [..., 3,S,S] -> float on the device, normalised; seen through ``camera`` [..., 3,3] if there is one."""
        x = images.to(self.device, non_blocking=True).float() / 255.0
        if camera is not None:
            x = (camera.to(self.device) @ x.flatten(-2)).clamp(0.0, 1.0).view(x.shape)
        return (x - self._mean) / self._std


def _side_by_side(images: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """The cut-outs of unequal size in one tensor [n,3,H,W], each in its upper left corner."""
    height, width = boxes[:, 2].max(), boxes[:, 3].max()
    whole = torch.zeros(len(images), 3, int(height), int(width), dtype=torch.uint8)
    for place, image, (top, left, h, w) in zip(whole, images, boxes.tolist(), strict=True):
        place[:, :h, :w] = image[:, top : top + h, left : left + w]
    return whole.pin_memory() if torch.cuda.is_available() else whole


def _from_corner(boxes: Tensor) -> Tensor:
    """The same boxes where each cut-out lies in the upper left corner."""
    return torch.cat([torch.zeros_like(boxes[:, :2]), boxes[:, 2:]], dim=1)


def fit(image: Tensor, preprocess: Preprocess) -> Tensor:
    """uint8 [3,H,W] -> uint8 [3,S,S], through PIL as open_clip does it: shorter side to S and centre crop, or squashed."""
    size = preprocess.size
    if image.shape[1:] == (size, size):
        return image
    mode = InterpolationMode(preprocess.interpolation)
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
