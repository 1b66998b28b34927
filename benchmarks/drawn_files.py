"""JPEG files drawn for a measurement: pictures of noise, of a data set's sizes, or in CoOp's layout of Caltech-101 with everyday names."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from PIL import Image

from pfedmma import rng
from pfedmma.cost.step import class_names
from pfedmma.data.sources.coop import LAYOUTS
from pfedmma.system.errors import UserError

PICTURES, SIZE = 32, (300, 240)  # different pictures, which the files repeat; width and height of the usual photograph in Caltech-101
# Width and height of the usual photographs of each data set, in turn.
SIZES = {
    "cifar10": ((32, 32),),
    "eurosat": ((64, 64),),
    "caltech101": (SIZE, (300, 200), (240, 300)),
    "ucf101": ((320, 240),),
    "dtd": ((640, 480), (480, 480), (500, 640)),
    "imagenet": ((500, 375), (375, 500), (500, 333)),
    "oxford_pets": ((500, 375), (375, 500), (300, 225)),
    "food101": ((512, 512), (512, 384), (384, 512)),
    "oxford_flowers": ((667, 500), (500, 667), (500, 500)),
    "stanford_cars": ((640, 480), (1024, 768), (800, 600)),
    "fgvc_aircraft": ((1024, 695), (1024, 768), (1200, 820)),
    "sun397": ((1024, 768), (800, 600), (768, 1024)),
    "photographs": ((4000, 3000),),  # as a camera of 12 megapixels takes them
}


def write_files(root: Path, classes: int, shots: int, tests: int) -> int:
    """Files below ``root``: ``shots`` for training, one for validation and ``tests``, of each class.

    Returns:
        The bytes of an average file.
    """
    layout = LAYOUTS["caltech101"]
    folder = root / layout.folder
    images = folder / layout.images
    images.mkdir(parents=True)
    drawn = [folder / f"{number}.jpg" for number in range(PICTURES)]
    for number, path in enumerate(drawn):
        _draw(number, SIZE).save(path, quality=90)
    parts: dict[str, list[list[object]]] = {"train": [], "val": [], "test": []}
    turn = 0
    for label, name in enumerate(class_names(classes)):
        (images / name).mkdir()
        for number, part in enumerate(["train"] * shots + ["val"] + ["test"] * tests):
            file = f"{name}/{number:04d}.jpg"
            _same_file(drawn[turn % PICTURES], images / file)
            parts[part].append([file, label, name])
            turn += 1
    (folder / layout.split).write_text(json.dumps(parts), encoding="utf-8")
    return sum(path.stat().st_size for path in drawn) // PICTURES


def write_pictures(folder: Path, data_set: str, count: int) -> list[Path]:
    """``count`` files in ``folder``, of the sizes of ``data_set``; `PICTURES` of them differ. Raises a `UserError` if it is not known."""
    if data_set not in SIZES:
        raise UserError(f"--drawn: nothing is known of the sizes in '{data_set}'; of these it is: {', '.join(SIZES)}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if number < PICTURES:
            _draw(number, SIZES[data_set][number % len(SIZES[data_set])]).save(path, quality=90)
        else:
            _same_file(paths[number % PICTURES], path)
    return paths


def _draw(number: int, size: tuple[int, int]) -> Image.Image:
    """Coarse noise with fine noise on top: about as many bytes as a photograph of this size."""
    gen = rng.generator(0, "picture", number)
    layers = [torch.randint(256, (side, side, 3), generator=gen, dtype=torch.uint8).numpy() for side in (8, 96)]
    coarse, fine = (Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC) for layer in layers)
    return Image.blend(coarse, fine, 0.25)


def _same_file(old: Path, new: Path) -> None:
    """``old`` under a second name; a copy where the file system knows no links."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
