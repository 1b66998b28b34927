"""Data sets that come with lists of their own: FGVC-Aircraft, ImageNet and DomainNet.

Each function raises a `UserError` where the lists are not below ``root``, say what they cannot, or name images that are not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pfedmma.data.sources.base import Open, Source
from pfedmma.data.sources.class_folders import ClassFolder, Entry, listing, names_in_use, notes_on
from pfedmma.data.sources.folders import folder_below, listed_twice, require, split
from pfedmma.data.sources.names import distinct, spoken
from pfedmma.system.errors import UserError
from pfedmma.system.files import read_text

DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
TEN_CLASSES = ("bird", "feather", "headphones", "ice_cream", "teapot", "tiger", "whale", "windmill", "wine_glass", "zebra")
"""The ten classes of DomainNet that FedBN (Li et al. 2021) and its successors use."""


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a list file that are not empty; a `UserError` that says where it should be."""
    try:
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
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
    parts: dict[str, list[Entry]] = {}
    for part in ("train", "val", "test"):
        entries = parts[part] = []
        for line in read_lines(folder / f"images_variant_{part}.txt", f"the {part} list"):
            image, _, name = line.partition(" ")
            if name not in label:
                raise UserError(f"data.root: images_variant_{part}.txt names the variant '{name}', which variants.txt does not")
            if Path(image).name != image:
                raise UserError(f"data.root: images_variant_{part}.txt must name files in images/, not '{image[:80]}'")
            entries.append((folder / "images" / f"{image}.jpg", label[name], 0))
        require(entries, f"images_variant_{part}.txt", folder / "images")
    notes = listed_twice(parts, "images_variant_*.txt")
    unseen = sorted(set(names) - {names[label] for entries in parts.values() for _, label, _ in entries})
    if unseen:
        raise UserError(f"data.root: variants.txt names '{unseen[0]}', of which images_variant_*.txt list no image; take it out")
    splits = {part: split(entries) for part, entries in parts.items()}
    return Source("fgvc_aircraft", names, splits, own_template="a photo of a {}, a type of aircraft.", notes=notes)


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
    read = {}
    for part, images in (("train", folder / "images" / "train"), ("test", folder / "images" / "val")):
        read[part] = [ClassFolder.read(images / wnid, wnid) for wnid, _ in pairs]
        if not names_in_use(read[part]):
            raise UserError(f"data.root: looked for images in {images}/<wnid>/ and found none")
    used = names_in_use([one for ones in read.values() for one in ones])
    kept = [(wnid, name) for wnid, name in pairs if wnid in used]  # in the order of the list
    order = [wnid for wnid, _ in kept]
    splits = {part: split([entry for one in ones for entry in one.entries(order)]) for part, ones in read.items()}
    notes = notes_on([one for ones in read.values() for one in ones]) + _said_alike([name for _, name in kept])
    return Source("imagenet", tuple(name for _, name in kept), splits, notes=notes)


def _said_alike(names: Sequence[str]) -> tuple[str, ...]:
    """A sentence about names of several classes, of which the usual list of ImageNet has two."""
    alike = [name for name, count in Counter(map(spoken, names)).items() if count > 1]
    return (f"classnames.txt gives one name to several classes, which no prompt tells apart: {', '.join(alike[:5])}",) if alike else ()


def domainnet(root: str, all_classes: bool, domains: Sequence[str] = ()) -> Source:
    """DomainNet by its own ``<domain>_train.txt`` and ``<domain>_test.txt`` lists; ten classes, or all 345; some domains, or all six."""
    folder = folder_below(root, "domainnet")
    chosen = tuple(dict.fromkeys(domains)) or DOMAINNET
    unknown = next((domain for domain in chosen if domain not in DOMAINNET), None)
    if unknown is not None:
        raise UserError(f"data.domains: domainnet has no domain '{unknown[:60]}'; it has {', '.join(DOMAINNET)}")
    _require_lists(folder, chosen)
    rows = {
        (part, domain): [_row(line, f"{domain}_{part}.txt") for line in read_lines(folder / f"{domain}_{part}.txt", f"the {part} list")]
        for part in ("train", "test")
        for domain in chosen
    }
    seen = sorted({name for listed in rows.values() for _, name in listed})
    names = tuple(seen) if all_classes else TEN_CLASSES
    missing = sorted(set(names) - set(seen))
    if missing:
        raise UserError(f"data.root: the lists in {folder} hold no image of class '{missing[0]}'")
    distinct(names, f"the lists in {folder}")
    label = {name: number for number, name in enumerate(names)}
    parts: dict[str, list[Entry]] = {}
    for part in ("train", "test"):
        parts[part] = [
            (folder / path, label[name], number)
            for number, domain in enumerate(chosen)
            for path, name in rows[part, domain]
            if name in label
        ]
        require(parts[part], f"<domain>_{part}.txt", folder)
    splits = {part: split(entries) for part, entries in parts.items()}
    return Source("domainnet", names, splits, domains=chosen, notes=listed_twice(parts, "<domain>_*.txt"))


def _require_lists(folder: Path, domains: Sequence[str]) -> None:
    """A `UserError` that names the setting where the lists of some domains are there and those of others are not."""
    there = [domain for domain in domains if all((folder / f"{domain}_{part}.txt").is_file() for part in ("train", "test"))]
    if there and len(there) < len(domains):
        lists = [folder / f"{domain}_{part}.txt" for domain in domains if domain not in there for part in ("train", "test")]
        absent = next(path for path in lists if not path.is_file())
        part = absent.stem.rsplit("_", 1)[1]
        raise UserError(
            f"data.root: looked for the {part} list at {absent}; that folder holds {listing(folder)}; "
            f"data.domains=[{', '.join(there)}] takes the domains whose lists are there"
        )


DATA_SETS: dict[str, Open] = {
    "fgvc_aircraft": lambda wanted: aircraft(wanted.root),
    "imagenet": lambda wanted: imagenet(wanted.root),
    "domainnet": lambda wanted: domainnet(wanted.root, wanted.all_classes, wanted.domains),
}


def _row(line: str, file: str) -> tuple[str, str]:
    """(path, class name) of "clipart/bird/clipart_026_000001.jpg 25"."""
    path = line.rsplit(" ", 1)[0]
    parts = Path(path).parts
    if len(parts) != 3 or ".." in parts or Path(path).is_absolute():
        raise UserError(f"data.root: {file} must list <domain>/<class>/<image> and a label on each line, not '{line}'")
    return path, parts[1]
