"""JPEG files in CoOp's layout of Caltech-101, drawn for a measurement: pictures of noise, under the names of everyday things."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from PIL import Image

from pfedmma import rng
from pfedmma.data.sources.cifar import SUPERCLASSES
from pfedmma.data.sources.coop import LAYOUTS
from pfedmma.system.errors import UserError

PICTURES, SIZE = 32, (300, 240)  # different pictures, which the files repeat; width and height of the usual photograph in Caltech-101


def class_names(count: int) -> tuple[str, ...]:
    """Names of everyday things, of the usual lengths. Raises a `UserError` if there are fewer than ``count``."""
    things = [name for names in SUPERCLASSES.values() for name in names.split()]
    kinds = ["", "old ", "small ", "red ", "wooden "]
    names = [kind + thing for kind in kinds for thing in things]
    if count > len(names):
        raise UserError(f"--classes: there are names for {len(names) // 2} classes at most, not for {count // 2}")
    return tuple(names[:count])


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
        _draw(number).save(path, quality=90)
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


def _draw(number: int) -> Image.Image:
    """Coarse noise with fine noise on top: about as many bytes as a photograph of this size."""
    gen = rng.generator(0, "picture", number)
    layers = [torch.randint(256, (side, side, 3), generator=gen, dtype=torch.uint8).numpy() for side in (8, 96)]
    coarse, fine = (Image.fromarray(layer).resize(SIZE, Image.Resampling.BICUBIC) for layer in layers)
    return Image.blend(coarse, fine, 0.25)


def _same_file(old: Path, new: Path) -> None:
    """``old`` under a second name; a copy where the file system knows no links."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
