"""Which files below a folder are images: told by the suffix or, where that says nothing, by what is inside. The rest is counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pfedmma.data.pixels.decode import FORMATS, is_image
from pfedmma.system.errors import UserError

# What an image is called whatever Pillow was built with; files of other names are looked into.
SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
# Left by macOS, Windows, storage boxes and Python beside people's files. Whatever begins with a dot is passed over as well.
OF_SYSTEMS = {
    "__macosx", "network trash folder", "temporary items", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin",
    "recycler", "recycled", "system volume information", "lost+found", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle",
    "#snapshot", "~snapshot", "__pycache__",
}  # fmt: skip
DEEPEST = 40  # folders in one another


@dataclass(frozen=True)
class Found:
    """The ``images`` below a folder and the other files ``left_out``, both in order of their paths."""

    images: tuple[Path, ...] = ()
    left_out: tuple[Path, ...] = ()


def is_of_system(name: str) -> bool:
    """Whether a file or folder of that name is an operating system's or a program's own."""
    return name.startswith(".") or name.lower() in OF_SYSTEMS


def find(folder: Path) -> Found:
    """All files below ``folder``, links followed; nothing where there is no such folder.

    Raises:
        UserError: a folder cannot be read.
    """
    images: list[Path] = []
    left_out: list[Path] = []
    if os.path.isdir(folder):
        _walk(folder, (), images, left_out)
    return Found(tuple(sorted(images)), tuple(sorted(left_out)))


def _walk(folder: Path, above: tuple[tuple[int, int], ...], images: list[Path], left_out: list[Path]) -> None:
    """Add the files below ``folder``; ``above``: the folders that it lies in, so that a link back to one of them ends there."""
    try:
        status = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"data.root: cannot read the folder {folder}: {error.strerror}") from None
    here = (status.st_dev, status.st_ino)
    if here in above or len(above) > DEEPEST:
        return
    for entry in entries:
        path = folder / entry.name
        if is_of_system(entry.name):
            continue
        if entry.is_dir():
            _walk(path, (*above, here), images, left_out)
        elif path.suffix.lower() in SUFFIXES or is_image(path):
            images.append(path)
        else:
            left_out.append(path)


def left_out_note(found: Sequence[Found]) -> str:
    """One sentence about the files that are no images; empty where there are none."""
    left_out = [path for one in found for path in one.left_out]
    if not left_out:
        return ""
    total = len(left_out) + sum(len(one.images) for one in found)
    kinds = Counter(path.suffix.lower() or "without a suffix" for path in left_out)
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) + (", ..." if len(kinds) > 5 else "")
    return (
        f"left out: {len(left_out)} of {total} files ({named}), first {left_out[0]}; "
        f"they are no images of a kind that is read ({', '.join(FORMATS)})"
    )
