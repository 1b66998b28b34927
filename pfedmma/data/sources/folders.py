"""Data sets that are plain folders of images: classes, or domains of classes.

``imagefolder``: ``train/<class>/`` and ``test/<class>/`` (``val/<class>/`` if there), or ``<class>/`` alone, which is split;
``domainfolder``: ``<domain>/<class>/``, split within each domain and class (PACS, Office-Home); ``office_caltech10`` likewise, with its
four domains. Sources of other files find and check folders and images with the functions here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.data.pixels.decode import decode
from pfedmma.data.sources.base import Open, Source, Split, Wanted
from pfedmma.system.errors import UserError

SPLIT_SEED = 0  # a split that has to be made up is part of the data: the same for every seed of a run
OFFICE = ("amazon", "caltech", "dslr", "webcam")  # domains of Office-Caltech10 (Gong et al. 2012)
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
LONGEST_NAME = 300  # of a class; what a prompt has no room for is cut off anyway
Entry = tuple[Path, int, int]  # (file, label, domain)


def image_folder(root: Path, test_fraction: float) -> Source:
    """One label space in folders.

    Raises:
        UserError: no such folders, or no images in them; says what was looked for and what is there.
    """
    if (root / "train").is_dir() and (root / "test").is_dir():
        names = class_folders(root / "train")
        parts = {}
        for part in ("train", "val", "test"):
            if (root / part).is_dir():
                extra = sorted(set(class_folders(root / part)) - set(names))
                if extra:
                    raise UserError(f"data.root: {root / part} holds class '{extra[0]}', which {root / 'train'} does not")
                parts[part] = [entry for label, name in enumerate(names) for entry in files(root / part / name, label, 0)]
    else:
        names = class_folders(root)
        found = [files(root / name, label, 0) for label, name in enumerate(names)]
        parts = split_groups(found, test_fraction)
    _require_images(parts, root, "train/<class>/ and test/<class>/, or <class>/,")
    distinct(names, f"the folders in {root}")
    return Source("imagefolder", names, {part: split(entries) for part, entries in parts.items()})


def domain_folder(name: str, root: Path, test_fraction: float, domains: Sequence[str] = ()) -> Source:
    """Domains of one label space; ``domains`` fixes which and in which order, else every folder in order of name.

    Raises:
        UserError: no such folders, or no images in them; says what was looked for and what is there.
    """
    chosen = tuple(domains) or class_folders(root)
    missing = [d for d in chosen if not (root / d).is_dir()]
    if missing:
        raise UserError(f"data.root: looked for the domain folders {', '.join(chosen)} in {root}, which holds {listing(root)}")
    names = tuple(sorted({label for domain in chosen for label in class_folders(root / domain)}))
    found = [
        files(root / domain / label_name, label, number)
        for number, domain in enumerate(chosen)
        for label, label_name in enumerate(names)
        if (root / domain / label_name).is_dir()
    ]
    parts = split_groups(found, test_fraction)
    _require_images(parts, root, "<domain>/<class>/")
    distinct(names, f"the folders in {root}")
    return Source(name, names, {part: split(entries) for part, entries in parts.items()}, domains=chosen)


def _any_root(wanted: Wanted) -> Path:
    if not wanted.root:
        raise UserError("data.root: give the folder of images")
    return Path(os.path.expanduser(wanted.root))


def _office_caltech10(wanted: Wanted) -> Source:
    return domain_folder(wanted.name, folder_below(wanted.root, "office_caltech_10"), wanted.test_fraction, OFFICE)


DATA_SETS: dict[str, Open] = {
    "imagefolder": lambda wanted: image_folder(_any_root(wanted), wanted.test_fraction),
    "domainfolder": lambda wanted: domain_folder(wanted.name, _any_root(wanted), wanted.test_fraction),
    "office_caltech10": _office_caltech10,
}


def data_root(root: str, holds: str) -> Path:
    """``data.root`` as a folder; a `UserError` where it is not given or not there. ``holds``: what it should hold."""
    if not root:
        raise UserError(f"data.root: this data set is read from disk; give the folder that holds {holds}/")
    base = Path(os.path.expanduser(root))  # leaves ~nobody as it is
    if not os.path.isdir(base):  # unlike Path.is_dir, no error on a name that cannot be
        raise UserError(f"data.root: there is no folder '{root}'")
    return base


def folder_below(root: str, name: str) -> Path:
    """``root/name`` if there is such a folder, else ``root`` itself; errors as of `data_root`."""
    base = data_root(root, name)
    return base / name if (base / name).is_dir() else base


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in ``folder``, sorted; a `UserError` if there is none."""
    if not os.path.isdir(folder):
        raise UserError(f"data.root: there is no folder '{folder}'")
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if not names:
        raise UserError(f"data.root: looked for a folder for each class in {folder}, which holds {listing(folder)}")
    return names


def files(folder: Path, label: int, domain: int) -> list[Entry]:
    """The images of one class folder in order of name; none where there is no such folder."""
    if not os.path.isdir(folder):
        return []
    return [(p, label, domain) for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]


def split_groups(groups: Sequence[list[Entry]], test_fraction: float) -> dict[str, list[Entry]]:
    """Divide every group (a class, or a class of a domain) into train and test at random; both get one where there are two."""
    parts: dict[str, list[Entry]] = {"train": [], "test": []}
    for number, group in enumerate(groups):
        count = min(max(1, round(len(group) * test_fraction)), len(group) - 1) if len(group) > 1 else 0
        order = torch.randperm(len(group), generator=rng.generator(SPLIT_SEED, "folder split", number)).tolist()
        parts["test"] += [group[i] for i in sorted(order[:count])]
        parts["train"] += [group[i] for i in sorted(order[count:])]
    return parts


def split(entries: Sequence[Entry]) -> Split:
    """A `Split` over image files."""
    labels = torch.tensor([label for _, label, _ in entries], dtype=torch.long)
    domains = torch.tensor([domain for _, _, domain in entries], dtype=torch.long)
    return Split(labels, partial(_read, [path for path, _, _ in entries]), domains)


def require(entries: list[Entry], listed_in: str, folder: Path) -> list[Entry]:
    """The entries, if all their files are there; a `UserError` says how many are not and names the first few."""
    missing = [path for path, _, _ in entries if not os.path.isfile(path)]
    if missing:
        few = ", ".join(str(path) for path in missing[:3])
        raise UserError(
            f"data.root: {len(missing)} of {len(entries)} images that {listed_in} lists are missing, "
            f"first {few}; unpack the images into {folder}"
        )
    return entries


def distinct(names: Sequence[str], where: str) -> None:
    """A `UserError` where two classes would be the same in a prompt, or a name is none."""
    odd = next((name for name in names if len(name) > LONGEST_NAME or not name.isprintable()), None)
    if odd is not None:
        raise UserError(f"data.root: {where} give the class name {odd[:60]!a}; up to {LONGEST_NAME} printable characters make a name")
    spoken = Counter(name.replace("_", " ") for name in names)
    twice = next((name for name, count in spoken.items() if count > 1), None)
    if twice:
        raise UserError(f"data.root: {where} give the class name '{twice}' to two classes")


def _require_images(parts: dict[str, list[Entry]], root: Path, layout: str) -> None:
    empty = next((part for part in ("train", "test") if not parts[part]), None)
    if empty:
        raise UserError(f"data.root: looked for images in {layout} below {root}, found none to {empty} on; it holds {listing(root)}")


def listing(folder: Path) -> str:
    """What a folder holds, for an error message."""
    return ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"


def _read(paths: Sequence[Path], index: int) -> Tensor:
    return decode(paths[index])
