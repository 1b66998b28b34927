"""Data sets in the CoOp layout: a folder of images and a ``split_zhou_*.json`` that lists train, val and test.

The JSON holds, for each part, entries [path below the image folder, label, class name].
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pfedmma.data.images import decode
from pfedmma.data.sources import Source, Split
from pfedmma.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Names below the data root: the set's folder, the image folder in it and the split file in it."""

    folder: str
    images: str
    split: str


LAYOUTS = {
    "caltech101": Layout("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "dtd": Layout("dtd", "images", "split_zhou_DescribableTextures.json"),
}


def load(name: str, root: str) -> Source:
    """Read the split file of data set ``name`` below ``root`` (the folder of all sets, or the set's own).

    Raises:
        UserError: nothing at ``root``, wrong layout, broken split file, images missing that the split names.
    """
    layout = LAYOUTS[name]
    folder = find_folder(layout, root)
    parts = read_split(folder / layout.split)
    names = class_names(parts, folder / layout.split)
    images = folder / layout.images
    splits = {}
    for part, entries in parts.items():
        paths = [images / path for path, _, _ in entries]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise UserError(
                f"data.root: {len(missing)} of {len(paths)} images that {layout.split} lists under '{part}' are missing, "
                f"first {missing[0]}; unpack the images into {images}"
            )
        labels = torch.tensor([label for _, label, _ in entries], dtype=torch.long)
        splits[part] = Split(labels, partial(_read, paths))
    return Source(name, names, splits)


def _read(paths: Sequence[Path], index: int) -> Tensor:
    return decode(paths[index])


def find_folder(layout: Layout, root: str) -> Path:
    """The set's own folder: ``root/<folder>`` or ``root`` itself, whichever holds the split file."""
    if not root:
        raise UserError(f"data.root: this data set is read from disk; give the folder that holds {layout.folder}/")
    base = Path(os.path.expanduser(root))  # leaves ~nobody as it is
    if not base.is_dir():
        raise UserError(f"data.root: there is no folder '{root}'")
    for folder in (base / layout.folder, base):
        if (folder / layout.split).is_file() and (folder / layout.images).is_dir():
            return folder
    held = ", ".join(sorted(p.name for p in base.iterdir())[:8]) or "nothing"
    raise UserError(
        f"data.root: looked for {layout.folder}/{layout.split} and {layout.folder}/{layout.images}/ below '{root}', which holds {held}"
    )


def read_split(path: Path) -> dict[str, list[tuple[str, int, str]]]:
    """{"train" | "val" | "test": [(path, label, class name), ...]}, checked."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the split file {path}: {error}") from None
    parts = {}
    for part in ("train", "val", "test"):
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(_is_entry(row) for row in rows):
            raise UserError(f"the split file {path} must hold a list of [path, label, class name] under '{part}'")
        parts[part] = [(file, label, name) for file, label, name in rows]
    return parts


def _is_entry(row: object) -> bool:
    if not (isinstance(row, list) and len(row) == 3):
        return False
    file, label, name = row
    inside = isinstance(file, str) and not Path(file).is_absolute() and ".." not in Path(file).parts
    return inside and isinstance(label, int) and not isinstance(label, bool) and isinstance(name, str)


def class_names(parts: dict[str, list[tuple[str, int, str]]], path: Path) -> tuple[str, ...]:
    """Class names in label order; labels must be 0 .. n-1, one name each."""
    names: dict[int, str] = {}
    for entries in parts.values():
        for _, label, name in entries:
            if names.setdefault(label, name) != name:
                raise UserError(f"the split file {path} gives label {label} two class names, '{names[label]}' and '{name}'")
    if sorted(names) != list(range(len(names))):
        raise UserError(f"the labels in the split file {path} must be 0 .. {len(names) - 1} without a gap")
    ordered = tuple(names[label] for label in range(len(names)))
    spoken = [name.replace("_", " ") for name in ordered]  # as prompts say them
    twice = {name for name in spoken if spoken.count(name) > 1}
    if not ordered:
        raise UserError(f"the split file {path} lists no image")
    if twice:
        raise UserError(f"the split file {path} gives the class name '{min(twice)}' to two labels")
    return ordered
