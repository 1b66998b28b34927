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
from pfedmma.data.pixels.crop import crop_box, end_to_end, fit, random_crop
from pfedmma.data.pixels.device_images import DeviceImages, Place
from pfedmma.data.pixels.medium import printed, screen
from pfedmma.data.pixels.ragged import STAGED, Crop, Crops
from pfedmma.data.sources.base import Source
from pfedmma.stack.offload import Budget

LARGE = 1 << 22  # bytes of a decoded image, or of a part of one; a GPU is given no larger part, but what the host makes of it
OF_TESTS = 0.5  # how much of a GPU's budget images may take that clients are tested on
BUDGET = Budget(device=8e9, host=8e9)


@dataclass(frozen=True)
class Staged:
    """Training images on their way to the device.

    ``images`` uint8 [n,3,S,S], ready; or, with ``crops`` int64 [n,7], the parts that are not on the device yet, end to end. ``rows`` and
    ``longest``: as in `Crops`.
    """

    images: Tensor
    crops: Tensor | None = None
    rows: int = 0
    longest: int = 0


class Pixels:
    """The images of a source, at a backbone's size; every image is decoded at most once.

    Test images are kept as the backbone's own preprocessing leaves them, training images as decoded: on a GPU those that come first, up to
    ``budget.device``, the others in memory up to ``budget.host``, the rest in a file. ``augment``: ``crop`` or ``none``. ``ranks``: how
    many on this machine decode side by side. ``stage`` may run in another thread than everything else.
    """

    def __init__(
        self, source: Source, preprocess: Preprocess, augment: str, device: torch.device, budget: Budget = BUDGET, ranks: int = 1
    ) -> None:
        self.source, self.preprocess, self.augment, self.device = source, preprocess, augment, device
        self.decoded = DecodedImages(source.splits["train"].read, budget.host, ranks)
        self.on_device = None if device.type == "cpu" else DeviceImages(device, budget.device)
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

    def tested(self, split: str, indices: Tensor, keep: bool) -> Tensor:
        """As `fitted`, but on the device where all of them lie there. With ``keep`` they are put there, as far as there is room."""
        if self.on_device is None:
            return self.fitted(split, indices)
        keys = [(split, "fitted", index) for index in indices.tolist()]
        places = [place for key in keys if (place := self.on_device.find(key))]
        if len(places) == len(keys) > 0:
            return torch.stack([self.on_device.image(place) for place in places])
        images = self.fitted(split, indices)
        for key, image in zip(keys, images, strict=True) if keep else ():
            self.on_device.keep(key, image, OF_TESTS)
        return images

    def bytes_by_place(self) -> dict[str, int]:
        """Where images rest, as {"cuda" or "cpu" or "disk": bytes}; of those that ranks share, each counts all."""
        device = {self.device.type: self.on_device.taken} if self.on_device else {}
        host = self.decoded.bytes_held + sum(images.bytes_held for images in self._fitted.values())
        return {**device, "cpu": host, "disk": self.decoded.bytes_spilled}

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
        if self.on_device is None:
            return Staged(self._cut(indices, draws, flips))
        parts: list[Tensor] = []
        crops: list[Crop] = []
        end = 0  # of the parts so far
        for found, draw, flip in zip(self._placed(self.on_device, indices), draws, flips.int().tolist(), strict=True):
            if isinstance(found, Place):
                crops.append(found.crop(crop_box(found.height, found.width, draw), flip))
                continue
            part = self._part(found, draw)
            _, height, width = part.shape
            crops.append(Crop(STAGED, end, height * width, width, height, width, flip))
            parts.append(part)
            end += part.numel()
        known = Crops.from_list(crops)
        return Staged(end_to_end(parts), known.table, known.rows, known.longest)

    def _placed(self, kept: DeviceImages, indices: Tensor) -> Iterator[Place | Tensor]:
        """Where on the device each training image lies; or the image, where it has found no room there."""
        for few in indices.split(self.decoded.at_once):
            numbers = few.tolist()
            missing = [i for i in numbers if kept.find(i) is None]
            images = dict(zip(missing, self.decoded.many(missing), strict=True))
            for i in numbers:
                if i in images and kept.keep(i, images[i]):
                    self.decoded.forget(i)
                yield kept.find(i) or images[i]

    def _part(self, image: Tensor, draws: Tensor) -> Tensor:
        """What a GPU has to be given of an image for a random crop: the part, or what becomes of a part that is large."""
        top, left, height, width = crop_box(image.shape[1], image.shape[2], draws)
        part = image[:, top : top + height, left : left + width]
        if part.numel() > LARGE:
            return random_crop(image, self.preprocess, draws, False)
        return part.clone() if image.numel() > LARGE else part  # of a large image nothing else is kept

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
        if staged.crops is None or self.on_device is None:
            return images
        crops = Crops(staged.crops.to(self.device, non_blocking=True), staged.rows, staged.longest)
        return self.on_device.crop_resize(images, crops, self.preprocess.size)

    def normalise(self, images: Tensor, camera: Camera | None = None) -> Tensor:
        """uint8 [..., 3,S,S] -> float on the device, normalised; in the source's medium, seen through ``camera`` if there is one."""
        x = images.to(self.device, non_blocking=True).float() / 255.0
        if self._screen is not None:
            x = printed(x, self.source.medium, self._screen)
        if camera is not None:
            x = camera.see(x)
        return (x - self._mean) / self._std
