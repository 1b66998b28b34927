"""Data sets that are plain folders of images: classes, or domains of classes.

``imagefolder``: ``train/<class>/`` and ``test/<class>/`` (``val/<class>/`` if there), or ``<class>/`` alone, which is split;
``domainfolder``: ``<domain>/<class>/``, split within each domain and class (PACS, Office-Home); ``office_caltech10`` likewise, with its
four domains. Sources of other files find and check folders and images with the functions here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.data.pixels.decode import decode
from pfedmma.data.sources.base import Open, Source, Split, Wanted
from pfedmma.data.sources.class_folders import (
    PARTS,
    ClassFolder,
    Entry,
    class_folders,
    listing,
    names_in_use,
    notes_on,
    refuse_other_layouts,
    subfolders,
)
from pfedmma.data.sources.names import distinct, nameless_note
from pfedmma.system.errors import UserError
from pfedmma.system.files import expanded

SPLIT_SEED = 0  # a split that has to be made up is part of the data: the same for every seed of a run
OFFICE = ("amazon", "caltech", "dslr", "webcam")  # domains of Office-Caltech10 (Gong et al. 2012)


def image_folder(root: Path, test_fraction: float) -> Source:
    """One label space in folders.

    Raises:
        UserError: no such folders, or no images in them; says what was looked for and what is there.
    """
    given, notes = part_folders(root)
    if given:
        read = {part: [ClassFolder.read(folder / name, name) for name in _classes_of(folder, given)] for part, folder in given.items()}
    else:
        read = {"": [ClassFolder.read(root / name, name) for name in class_folders(root)]}
    everything = [one for ones in read.values() for one in ones]
    names = names_in_use(everything)
    entries = {part: [one.entries(names) for one in ones] for part, ones in read.items()}
    parts = {part: list(chain(*ones)) for part, ones in entries.items()} if given else split_groups(entries[""], test_fraction)
    _require_images(parts, root, "train/<class>/ and test/<class>/, or <class>/,")
    refuse_other_layouts(everything, root)
    distinct(names, f"the folders in {root}")
    splits = {part: split(ones) for part, ones in parts.items()}
    return Source("imagefolder", names, splits, notes=notes + notes_on(everything) + nameless_note(names))


def part_folders(root: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The folders of ``root`` that are parts of a split, {"train" | "val" | "test": folder}, and what is to be said of them.

    Nothing where there are not one to train on and one to test on. What holds no class folders is no part.

    Raises:
        UserError: two of them are the same part.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()) if os.path.isdir(root) else ():
        if path.name.lower() in PARTS and path.is_dir() and subfolders(path):
            found.setdefault(PARTS[path.name.lower()], []).append(path)
    if "train" not in found or not ("test" in found or "val" in found):
        return {}, ()
    given: dict[str, Path] = {part: _one_of(found[part], part) for part in ("train", "val", "test") if part in found}
    notes = []
    if "test" not in given:
        given["test"] = given.pop("val")
        notes.append(f"there is no test/<class>/ in {root}: {given['test'].name}/ serves as the test split")
    real = {part: os.path.realpath(folder) for part, folder in given.items()}
    notes += [f"{given[part]} is the folder {given['train']}" for part in real if part != "train" and real[part] == real["train"]]
    return given, tuple(notes)


def _one_of(folders: Sequence[Path], part: str) -> Path:
    """The one that is called as the part is; a `UserError` where there are several and none is."""
    exact = [path for path in folders if path.name == part]
    if len(folders) > 1 and not exact:
        raise UserError(f"data.root: {folders[0]} and {folders[1].name} might both be the {part} split; call the one that is '{part}'")
    return (exact or list(folders))[0]


def _classes_of(folder: Path, given: dict[str, Path]) -> tuple[str, ...]:
    """The class folders of a part; a `UserError` for one that the training part does not have."""
    names = class_folders(folder)
    extra = sorted(set(names) - set(class_folders(given["train"])))
    if extra:
        raise UserError(f"data.root: {folder} holds class '{extra[0]}', which {given['train']} does not")
    return names


def domain_folder(name: str, root: Path, test_fraction: float, domains: Sequence[str] = ()) -> Source:
    """Domains of one label space; ``domains`` fixes which and in which order, else every folder with images in order of name.

    Raises:
        UserError: no such folders, or no images in them; says what was looked for and what is there.
    """
    wanted = tuple(dict.fromkeys(domains)) or class_folders(root)
    missing = [d for d in wanted if d != Path(d).name or not (root / d).is_dir()]
    if missing:
        raise UserError(
            f"data.root: looked for the domain folders {', '.join(wanted)} in {root}, which holds {listing(root)}; "
            f"data.domains chooses among domains"
        )
    if not any(subfolders(root / domain) for domain in wanted):
        class_folders(root / wanted[0])  # says what is missing
    read = {domain: [ClassFolder.read(root / domain / label, label) for label in subfolders(root / domain)] for domain in wanted}
    empty = [domain for domain in wanted if not names_in_use(read[domain])]
    if empty and domains and len(empty) < len(wanted):
        raise UserError(f"data.root: the domain folder {root / empty[0]} holds no image in class folders; leave it out of data.domains")
    held = tuple(domain for domain in wanted if domain not in empty)
    everything = [one for domain in held for one in read[domain]]
    names = names_in_use(everything)
    groups = [one.entries(names, number) for number, domain in enumerate(held) for one in read[domain]]
    parts = split_groups(groups, test_fraction)
    _require_images(parts, root, "<domain>/<class>/")
    refuse_other_layouts(everything, root)
    distinct(names, f"the folders in {root}")
    notes = (f"left out: {', '.join(empty)} in {root}, where no image lies in a class folder",) if empty else ()
    splits = {part: split(ones) for part, ones in parts.items()}
    return Source(name, names, splits, domains=held, notes=notes + notes_on(everything) + nameless_note(names))


def _any_root(wanted: Wanted) -> Path:
    if not wanted.root:
        raise UserError("data.root: give the folder of images")
    return expanded(wanted.root)


def _office_caltech10(wanted: Wanted) -> Source:
    return domain_folder(wanted.name, folder_below(wanted.root, "office_caltech_10"), wanted.test_fraction, wanted.domains or OFFICE)


DATA_SETS: dict[str, Open] = {
    "imagefolder": lambda wanted: image_folder(_any_root(wanted), wanted.test_fraction),
    "domainfolder": lambda wanted: domain_folder(wanted.name, _any_root(wanted), wanted.test_fraction, wanted.domains),
    "office_caltech10": _office_caltech10,
}


def data_root(root: str, holds: str) -> Path:
    """``data.root`` as a folder; a `UserError` where it is not given or not there. ``holds``: what it should hold."""
    if not root:
        raise UserError(f"data.root: this data set is read from disk; give the folder that holds {holds}/")
    base = expanded(root)  # leaves ~nobody as it is
    if not os.path.isdir(base):  # unlike Path.is_dir, no error on a name that cannot be
        raise UserError(f"data.root: there is no folder '{root}'")
    return base


def folder_below(root: str, name: str) -> Path:
    """``root/name`` if there is such a folder, else ``root`` itself; errors as of `data_root`."""
    base = data_root(root, name)
    return base / name if (base / name).is_dir() else base


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
    paths = [path for path, _, _ in entries]
    read = partial(_read, paths)
    return Split(labels, read, domains, _sizes(paths), read)


def _sizes(paths: Sequence[Path]) -> tuple[tuple[str, int], ...]:
    """(path, counted from the folder that holds all of them; size in bytes) of each file; size -1 of one that is not there."""
    if not paths:
        return ()
    apart = [os.path.split(path) for path in paths]
    folders = {folder for folder, _ in apart}
    top = os.path.commonpath(list(folders))
    below = {folder: os.path.relpath(folder, top) for folder in folders}  # once a folder: there may be a million files
    return tuple(
        (os.path.normpath(os.path.join(below[folder], name)), _size(path)) for (folder, name), path in zip(apart, paths, strict=True)
    )


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1


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


def listed_twice(parts: Mapping[str, Sequence[Entry]], where: str) -> tuple[str, ...]:
    """A sentence about images that a split lists more than once, if any.

    Raises:
        UserError: one of them is under two labels.
    """
    seen: dict[Path, tuple[str, int]] = {}
    twice: list[tuple[Path, str, str]] = []
    for part, entries in parts.items():
        for path, label, _ in entries:
            if path not in seen:
                seen[path] = part, label
                continue
            before, known = seen[path]
            if known != label:
                raise UserError(f"data.root: {where} lists the image {path} under two labels, {known} and {label}; keep the right one")
            twice.append((path, before, part))
    if not twice:
        return ()
    path, before, part = twice[0]
    return (f"{where} lists {len(twice)} images more than once, first {path} in {before} and in {part}",)


def _require_images(parts: dict[str, list[Entry]], root: Path, layout: str) -> None:
    empty = next((part for part in ("train", "test") if not parts[part]), None)
    if empty:
        raise UserError(f"data.root: looked for images in {layout} below {root}, found none to {empty} on; it holds {listing(root)}")


def _read(paths: Sequence[Path], index: int, least: int = 0) -> Tensor:
    return decode(paths[index], least)
