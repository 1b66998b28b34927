"""The images of a source on their way to a backbone: read once, cut or fitted to its size, and normalised on its device.

Shape legend: n images, H x W pixels as decoded, S pixels a side at the backbone's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.partition.camera import Camera
from pfedmma.data.pixels.cache import DecodedImages, FittedImages
from pfedmma.data.pixels.crop import crop_box, fit, from_corner, random_crop, side_by_side
from pfedmma.data.pixels.medium import printed, screen
from pfedmma.data.pixels.resample import crop_resize
from pfedmma.data.sources.base import Source

LARGE = 1 << 22  # bytes of a decoded image
MOST_STAGED = 1 << 31  # bytes of parts of images that a GPU is given to resize; a batch that needs more is resized on the host


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

    Test images are kept as the backbone's own preprocessing leaves them, training images as decoded: up to ``cache_gb`` GB of them in
    memory. ``augment``: ``crop`` or ``none``. ``ranks``: how many on this machine decode side by side. ``stage`` may run in another
    thread than everything else.
    """

    def __init__(
        self, source: Source, preprocess: Preprocess, augment: str, device: torch.device, cache_gb: float = 8.0, ranks: int = 1
    ) -> None:
        self.source, self.preprocess, self.augment, self.device = source, preprocess, augment, device
        self.decoded = DecodedImages(source.splits["train"].read, cache_gb * 1e9, ranks)
        self._fitted: dict[str, FittedImages] = {}
        self._mean = torch.tensor(preprocess.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(preprocess.std, device=device).view(3, 1, 1)
        self._screen = screen(preprocess.size).to(device) if source.medium else None

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
        """The host's part of making training images: all of it on the CPU, the gathering of pixels for a GPU.

        Args:
            indices: [n] positions in the training split. draws, flips: as `draws` gives them.
        """
        if self.augment == "none":
            return Staged(self.fitted("train", indices))
        if self.device.type == "cpu":
            return Staged(self._cut(indices, draws, flips))
        parts, boxes = [], []
        for image, draw in zip(self._few_at_a_time(indices), draws, strict=True):
            top, left, height, width = box = crop_box(image.shape[1], image.shape[2], draw)
            part = image[:, top : top + height, left : left + width]
            parts.append(part.clone() if image.numel() > LARGE else part)  # of a large image nothing else is kept
            boxes.append(box)
            if len(indices) * 3 * max(box[2] for box in boxes) * max(box[3] for box in boxes) > MOST_STAGED:
                return Staged(self._cut(indices, draws, flips))
        corners = from_corner(torch.tensor(boxes))
        return Staged(side_by_side(parts, corners), corners, flips)

    def _cut(self, indices: Tensor, draws: Tensor, flips: Tensor) -> Tensor:
        """Random crops made on the host, [n,3,S,S]."""
        images = self._few_at_a_time(indices)
        return torch.stack(
            [random_crop(image, self.preprocess, draw, bool(flip)) for image, draw, flip in zip(images, draws, flips, strict=True)]
        )

    def _few_at_a_time(self, indices: Tensor) -> Iterator[Tensor]:
        """The decoded training images [3,H,W] one by one, so that a batch of photographs is never in memory as a whole."""
        for few in indices.split(self.decoded.at_once):
            yield from self.decoded.many(few.tolist())

    def finish(self, staged: Staged) -> Tensor:
        """The device's part: [n,3,S,S] uint8 on the device."""
        images = staged.images.to(self.device, non_blocking=True)
        if staged.boxes is None or staged.flips is None:
            return images
        return crop_resize(images, staged.boxes.to(self.device), staged.flips.to(self.device), self.preprocess.size)

    def normalise(self, images: Tensor, camera: Camera | None = None) -> Tensor:
        """uint8 [..., 3,S,S] -> float on the device, normalised; in the source's medium, seen through ``camera`` if there is one."""
        x = images.to(self.device, non_blocking=True).float() / 255.0
        if self._screen is not None:
            x = printed(x, self.source.medium, self._screen)
        if camera is not None:
            x = camera.see(x)
        return (x - self._mean) / self._std
