"""Images that lie in one folder a class: which folders are classes, and what a user is told of what was left out of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pfedmma.data.sources import images
from pfedmma.data.sources.images import Found
from pfedmma.system.errors import UserError

Entry = tuple[Path, int, int]  # (file, label, domain)
# What people call the folders of the parts of a split.
PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class ClassFolder:
    """One folder of one class, and the files below it."""

    folder: Path
    name: str
    found: Found

    @classmethod
    def read(cls, folder: Path, name: str) -> ClassFolder:
        """What is below ``folder``; nothing where there is no such folder."""
        return cls(folder, name, images.find(folder))

    def entries(self, names: Sequence[str], domain: int = 0) -> list[Entry]:
        """The images in order of their paths, labelled by the place of the class in ``names``; none of a class that is not there."""
        if self.name not in names:
            return []
        label = names.index(self.name)
        return [(path, label, domain) for path in self.found.images]

    @property
    def deeper(self) -> list[Path]:
        """Those of the images that lie in a folder of this folder."""
        return [path for path in self.found.images if path.parent != self.folder]


def names_in_use(read: Sequence[ClassFolder]) -> tuple[str, ...]:
    """The names of the classes of which there is an image, sorted."""
    return tuple(sorted({one.name for one in read if one.found.images}))


def refuse_other_layouts(read: Sequence[ClassFolder], root: Path) -> None:
    """A `UserError` where what was taken for classes is more likely something else.

    Images below subfolders of a class are its own, but only where others lie in their class folders themselves: otherwise the folders
    might as well be domains, or the root one too high.
    """
    parts = [one for one in read if one.name.lower() in PARTS and one.found.images and len(one.deeper) == len(one.found.images)]
    if parts:
        raise UserError(
            f"data.root: {parts[0].folder} is a part of a split rather than a class; looked for images in train/<class>/ and "
            f"test/<class>/, or <class>/, below {root}"
        )
    found = [path for one in read for path in one.found.images]
    if found and all(len(one.deeper) == len(one.found.images) for one in read):
        raise UserError(
            f"data.root: looked for images in class folders below {root}, but all lie a folder deeper, first {found[0]}; "
            f"give the folder above the classes, or data.name=domainfolder where they are <domain>/<class>/"
        )


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in ``folder``, sorted; a `UserError` if there is none."""
    if not os.path.isdir(folder):
        raise UserError(f"data.root: there is no folder '{folder}'")
    names = subfolders(folder)
    if not names:
        raise UserError(f"data.root: looked for a folder for each class in {folder}, which holds {listing(folder)}")
    return names


def subfolders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in ``folder`` that are people's own, sorted."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not images.is_of_system(p.name)))


def listing(folder: Path) -> str:
    """What a folder holds, for an error message."""
    return ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"


def notes_on(read: Sequence[ClassFolder]) -> tuple[str, ...]:
    """What a user should know of how these folders were read, a sentence each."""
    names = names_in_use(read)
    empty = sorted({one.name for one in read} - set(names))
    deep = [one for one in read if one.deeper]
    counts = Counter({one.name: 0 for one in deep})
    for one in deep:
        counts[one.name] += len(one.deeper)
    notes = [
        f"left out: the classes {_few(empty)}, of which there is no image" if empty else "",
        f"read below subfolders: {_few([f'{count} images of class {name}' for name, count in counts.items()])}" if deep else "",
        images.left_out_note([one.found for one in read]),
    ]
    return tuple(note for note in notes if note)


def _few(items: Sequence[str], most: int = 5) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
