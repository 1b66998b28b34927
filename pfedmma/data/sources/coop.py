"""Data sets in the CoOp layout: a folder of images and a ``split_zhou_*.json`` that lists train, val and test.

The JSON holds, for each part, entries [path below the image folder, label, class name]. Where the file is missing, CoOp's own
rule for that data set is applied once, always with the same draw, and the result kept with the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedmma.data.sources import coop_splits
from pfedmma.data.sources.base import Open, Source
from pfedmma.data.sources.class_folders import ClassFolder, Entry, class_folders, listing, notes_on
from pfedmma.data.sources.folders import SPLIT_SEED, data_root, listed_twice, require, split
from pfedmma.data.sources.names import LONGEST_NAME, distinct
from pfedmma.system import untrusted
from pfedmma.system.errors import UserError
from pfedmma.system.files import read_text


@dataclass(frozen=True)
class Layout:
    """Names below the data root: the set's folder, the image folder in it and the split file in it.

    ``template`` is the usual prompt of this data set. ``by_class``: images lie in one folder a class and CoOp splits each class at
    random, so that a missing split file can be made up for; ``skip`` and ``rename`` are CoOp's changes to those folders' names.
    ``rule`` makes up for it from the data set's own lists, if ``lists`` is there.
    """

    folder: str
    images: str
    split: str
    template: str
    by_class: bool = False
    skip: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    rule: coop_splits.Rule | None = None
    lists: str = ""


LAYOUTS = {
    "caltech101": Layout(
        "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json", "a photo of a {}.", True,
        ("BACKGROUND_Google", "Faces_easy"),
        (("airplanes", "airplane"), ("Faces", "face"), ("Leopards", "leopard"), ("Motorbikes", "motorbike")),
    ),
    "oxford_pets": Layout("oxford_pets", "images", "split_zhou_OxfordPets.json", "a photo of a {}, a type of pet.",
        rule=coop_splits.pets, lists="annotations/trainval.txt"),
    "oxford_flowers": Layout("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", "a photo of a {}, a type of flower.",
        rule=coop_splits.flowers, lists="imagelabels.mat"),
    "food101": Layout("food-101", "images", "split_zhou_Food101.json", "a photo of {}, a type of food.", True),
    "dtd": Layout("dtd", "images", "split_zhou_DescribableTextures.json", "{} texture.", True),
    "sun397": Layout("sun397", "SUN397", "split_zhou_SUN397.json", "a photo of a {}.", rule=coop_splits.sun397, lists="ClassName.txt"),
    "ucf101": Layout("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", "a photo of a person doing {}.",
        rule=coop_splits.ucf101, lists="ucfTrainTestlist"),
    "eurosat": Layout(
        "eurosat", "2750", "split_zhou_EuroSAT.json", "a centered satellite photo of {}.", True, (),
        (
            ("AnnualCrop", "Annual Crop Land"), ("HerbaceousVegetation", "Herbaceous Vegetation Land"), ("Highway", "Highway or Road"),
            ("Industrial", "Industrial Buildings"), ("Pasture", "Pasture Land"), ("PermanentCrop", "Permanent Crop Land"),
            ("Residential", "Residential Buildings"), ("SeaLake", "Sea or Lake"),
        ),
    ),
    "stanford_cars": Layout("stanford_cars", "", "split_zhou_StanfordCars.json", "a photo of a {}."),
}  # fmt: skip


def load(name: str, root: str, seed: int = SPLIT_SEED) -> Source:
    """Data set ``name`` below ``root`` (the folder of all sets, or the set's own).

    Raises:
        UserError: nothing at ``root``, wrong layout, broken split file, images missing that the split names.
    """
    layout = LAYOUTS[name]
    folder = find_folder(layout, root)
    images, file = folder / layout.images, folder / layout.split
    made, notes = (None, ()) if file.is_file() else make_split(layout, folder, seed)
    listed = read_split(file) if made is None else _checked(made, file)
    names = class_names(listed, file)
    parts: dict[str, list[Entry]] = {}
    for part, rows in listed.items():
        parts[part] = [(images / path, label, 0) for path, label, _ in rows]
        require(parts[part], f"{layout.split} under '{part}'", images)
    notes += listed_twice(parts, f"the split file {file}" if made is None else "the split that was made")
    splits = {part: split(entries) for part, entries in parts.items()}
    return Source(name, names, splits, own_template=layout.template, made_split=made, notes=notes)


DATA_SETS: dict[str, Open] = {name: lambda wanted: load(wanted.name, wanted.root) for name in LAYOUTS}


def find_folder(layout: Layout, root: str) -> Path:
    """The set's own folder: ``root/<folder>`` or ``root`` itself, whichever holds the images and, where needed, the split file.

    Raises:
        UserError: neither does; says what was looked for and what is there.
    """
    base = data_root(root, layout.folder)
    candidates = [folder for folder in (base / layout.folder, base) if (folder / layout.images).is_dir()]
    for folder in candidates:
        if (folder / layout.split).is_file():
            return folder
    for folder in candidates:
        if layout.by_class or (layout.rule is not None and (folder / layout.lists).exists()):
            return folder
    near = [path for folder in candidates for path in _near(layout, folder)]
    raise UserError(
        f"data.root: looked for {layout.folder}/{layout.split} and {(Path(layout.folder) / layout.images).as_posix()}/ below '{root}', "
        f"which holds {listing(base)}" + (f"; is it {near[0]}? Then move it to {candidates[0] / layout.split}" if near else "")
    )


def make_split(layout: Layout, folder: Path, seed: int) -> tuple[dict[str, list[list[Any]]], tuple[str, ...]]:
    """CoOp's rule for a set without its split file, in the form of that file; and what a user should know of it.

    Raises:
        UserError: a class has too few images to divide.
    """
    images = folder / layout.images
    read: list[ClassFolder] = []
    if layout.rule is not None:
        made = layout.rule(folder, seed)
    else:
        read = [ClassFolder.read(images / name, name) for name in class_folders(images) if name not in layout.skip]
        made = split_by_class(layout, images, read, seed)
    near = _near(layout, folder)
    beside = f"; is it {near[0]}? Then move it to {folder / layout.split}" if near else ""
    said = f"there is no {layout.split} in {folder}, so the split into train, val and test was made anew, and is not CoOp's{beside}"
    return made, (said, *notes_on(read))


def _near(layout: Layout, folder: Path) -> list[Path]:
    """Files that may be the split file under another name, or in a folder nearby."""
    stem = layout.split.removesuffix(".json").lower()
    around = [folder, folder.parent, folder / layout.images, *(path for path in _inside(folder) if path.is_dir())]
    files = [path for place in dict.fromkeys(around) for path in _inside(place)]
    named = [path for path in files if stem in path.name.lower().replace(" ", "_")]
    return named or [path for path in files if path.parent == folder and path.suffix == ".json" and "split" in path.name.lower()]


def _inside(folder: Path) -> list[Path]:
    """What is in a folder, in order of name; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def split_by_class(layout: Layout, images: Path, read: Sequence[ClassFolder], seed: int) -> dict[str, list[list[Any]]]:
    """CoOp's rule for one folder a class, in the form of its JSON.

    Raises:
        UserError: a class has too few images to divide.
    """
    rows: list[list[Any]] = []
    for label, one in enumerate(read):
        name = dict(layout.rename).get(one.name, one.name)
        if not one.found.images:
            raise UserError(f"data.root: class '{name}' has 0 images, too few to divide into train, val and test")
        rows += [[path.relative_to(images).as_posix(), label, name] for path in one.found.images]
    return coop_splits.shares_of_each_class(rows, seed, coop_splits.TRAIN_SHARE, coop_splits.VAL_SHARE)


def read_split(path: Path) -> dict[str, list[tuple[str, int, str]]]:
    """{"train" | "val" | "test": [(path, label, class name), ...]}, checked.

    Raises:
        UserError: no such JSON, or a path that leaves the image folder.
    """
    try:
        content = untrusted.parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the split file {path}: {error}") from None
    return _checked(content, path)


def _checked(content: Any, path: Path) -> dict[str, list[tuple[str, int, str]]]:
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
    named = isinstance(name, str) and len(name) <= LONGEST_NAME and name.isprintable()
    return inside and isinstance(label, int) and not isinstance(label, bool) and named


def class_names(parts: dict[str, list[tuple[str, int, str]]], path: Path) -> tuple[str, ...]:
    """Class names in label order.

    Raises:
        UserError: labels are not 0 .. n-1, or a label or a name is used twice.
    """
    names: dict[int, str] = {}
    for entries in parts.values():
        for _, label, name in entries:
            if names.setdefault(label, name) != name:
                raise UserError(f"the split file {path} gives label {label} two class names, '{names[label]}' and '{name}'")
    if sorted(names) != list(range(len(names))):
        raise UserError(f"the labels in the split file {path} must be 0 .. {len(names) - 1} without a gap")
    ordered = tuple(names[label] for label in range(len(names)))
    if not ordered:
        raise UserError(f"the split file {path} lists no image")
    distinct(ordered, f"the labels in the split file {path}")
    return ordered
