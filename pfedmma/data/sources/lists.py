"""Data sets that come with lists of their own: FGVC-Aircraft, ImageNet and DomainNet.

Each function raises a `UserError` where the lists are not below ``root``, say what they cannot, or name images that are not there.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pfedmma.data.sources.base import Open, Source
from pfedmma.data.sources.folders import Entry, distinct, files, folder_below, listing, require, split
from pfedmma.system.errors import UserError

DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
TEN_CLASSES = ("bird", "feather", "headphones", "ice_cream", "teapot", "tiger", "whale", "windmill", "wine_glass", "zebra")
"""The ten classes of DomainNet that FedBN (Li et al. 2021) and its successors use."""


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a list file that are not empty; a `UserError` that says where it should be."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"data.root: looked for {what} at {path}, which is no text in UTF-8: {error}") from None
    except (OSError, ValueError):
        held = listing(path.parent) if path.parent.is_dir() else "nothing"
        raise UserError(f"data.root: looked for {what} at {path}; that folder holds {held}") from None


def aircraft(root: str) -> Source:
    """FGVC-Aircraft by variant: ``variants.txt`` and ``images_variant_{train,val,test}.txt`` beside ``images/``."""
    folder = folder_below(root, "fgvc_aircraft")
    names = tuple(read_lines(folder / "variants.txt", "the list of variants"))
    distinct(names, "the lines of variants.txt")
    label = {name: number for number, name in enumerate(names)}
    splits = {}
    for part in ("train", "val", "test"):
        entries: list[Entry] = []
        for line in read_lines(folder / f"images_variant_{part}.txt", f"the {part} list"):
            image, _, name = line.partition(" ")
            if name not in label:
                raise UserError(f"data.root: images_variant_{part}.txt names the variant '{name}', which variants.txt does not")
            if Path(image).name != image:
                raise UserError(f"data.root: images_variant_{part}.txt must name files in images/, not '{image[:80]}'")
            entries.append((folder / "images" / f"{image}.jpg", label[name], 0))
        splits[part] = split(require(entries, f"images_variant_{part}.txt", folder / "images"))
    return Source("fgvc_aircraft", names, splits, own_template="a photo of a {}, a type of aircraft.")


def imagenet(root: str) -> Source:
    """ImageNet in the CoOp layout: ``images/train/<wnid>/``, ``images/val/<wnid>/`` (the test set), ``classnames.txt``."""
    folder = folder_below(root, "imagenet")
    pairs = [line.split(" ", 1) for line in read_lines(folder / "classnames.txt", "the list of class names")]
    bad = next((p for p in pairs if len(p) != 2), None)
    if bad:
        raise UserError(f"data.root: classnames.txt must give a folder and a name on each line, not '{bad[0]}'")
    folders = Counter(wnid for wnid, _ in pairs)
    outside = next((wnid for wnid in folders if Path(wnid).name != wnid or wnid == ".."), None)
    if outside:
        raise UserError(f"data.root: classnames.txt must name folders in images/train/, not '{outside[:80]}'")
    twice = next((wnid for wnid, count in folders.items() if count > 1), None)
    if twice:
        raise UserError(f"data.root: classnames.txt names the folder '{twice}' on two lines")
    splits = {}
    for part, images in (("train", folder / "images" / "train"), ("test", folder / "images" / "val")):
        entries = [entry for label, (wnid, _) in enumerate(pairs) for entry in files(images / wnid, label, 0)]
        if not entries:
            raise UserError(f"data.root: looked for images in {images}/<wnid>/ and found none")
        splits[part] = split(entries)
    return Source("imagenet", tuple(name for _, name in pairs), splits)


def domainnet(root: str, all_classes: bool) -> Source:
    """DomainNet by its own ``<domain>_train.txt`` and ``<domain>_test.txt`` lists; ten classes, or all 345."""
    folder = folder_below(root, "domainnet")
    rows = {
        (part, domain): [_row(line, f"{domain}_{part}.txt") for line in read_lines(folder / f"{domain}_{part}.txt", f"the {part} list")]
        for part in ("train", "test")
        for domain in DOMAINNET
    }
    seen = sorted({name for listed in rows.values() for _, name in listed})
    names = tuple(seen) if all_classes else TEN_CLASSES
    missing = sorted(set(names) - set(seen))
    if missing:
        raise UserError(f"data.root: the lists in {folder} hold no image of class '{missing[0]}'")
    label = {name: number for number, name in enumerate(names)}
    splits = {}
    for part in ("train", "test"):
        entries = [
            (folder / path, label[name], number)
            for number, domain in enumerate(DOMAINNET)
            for path, name in rows[part, domain]
            if name in label
        ]
        splits[part] = split(require(entries, f"<domain>_{part}.txt", folder))
    return Source("domainnet", names, splits, domains=DOMAINNET)


DATA_SETS: dict[str, Open] = {
    "fgvc_aircraft": lambda wanted: aircraft(wanted.root),
    "imagenet": lambda wanted: imagenet(wanted.root),
    "domainnet": lambda wanted: domainnet(wanted.root, wanted.all_classes),
}


def _row(line: str, file: str) -> tuple[str, str]:
    """(path, class name) of "clipart/bird/clipart_026_000001.jpg 25"."""
    path = line.rsplit(" ", 1)[0]
    parts = Path(path).parts
    if len(parts) != 3 or ".." in parts or Path(path).is_absolute():
        raise UserError(f"data.root: {file} must list <domain>/<class>/<image> and a label on each line, not '{line}'")
    return path, parts[1]
