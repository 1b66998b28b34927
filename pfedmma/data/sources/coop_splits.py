"""CoOp's splits made anew from a data set's own lists, for users whose data came without ``split_zhou_*.json``.

Pets, UCF101 and SUN397 have official train and test lists, of whose training part CoOp gives a fifth of each class to val; of
Flowers CoOp takes half, a fifth and the rest of each class. The draw is by seed, so that it is not CoOp's own draw.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pfedmma import rng
from pfedmma.data.sources.lists import read_lines
from pfedmma.system import untrusted
from pfedmma.system.errors import UserError
from pfedmma.system.files import read_text

Row = list[Any]  # [path below the image folder, label, class name]
Rule = Callable[[Path, int], dict[str, list[Row]]]
TRAIN_SHARE, VAL_SHARE = 0.5, 0.2


def shares_of_each_class(rows: Sequence[Row], seed: int, train: float, val: float) -> dict[str, list[Row]]:
    """Of each class, shuffled by seed: a share to train, one to val, the rest to test; every part gets something.

    Raises:
        UserError: a class has too few images.
    """
    parts: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    by_label: dict[int, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row[1], []).append(row)
    for label, own in sorted(by_label.items()):
        order = torch.randperm(len(own), generator=rng.generator(seed, "coop split", own[0][2])).tolist()
        cuts = round(len(own) * train), round(len(own) * train) + round(len(own) * val)
        pieces = {"train": order[: cuts[0]], "val": order[cuts[0] : cuts[1]], "test": order[cuts[1] :]}
        wanted = [name for name, share in (("train", train), ("val", val), ("test", 1.0 - train - val)) if share > 1e-9]
        if not all(pieces[name] for name in wanted):
            raise UserError(
                f"data.root: class '{own[0][2]}' (label {label}) has {len(own)} images, too few to divide into train, val and test"
            )
        for name, chosen in pieces.items():
            parts[name] += [own[i] for i in chosen]
    return parts


def with_val(train: Sequence[Row], test: list[Row], seed: int) -> dict[str, list[Row]]:
    """Official lists, a fifth of each training class given to val."""
    parts = shares_of_each_class(train, seed, 1.0 - VAL_SHARE, VAL_SHARE)
    return {"train": parts["train"], "val": parts["val"] + parts["test"], "test": test}


def pets(folder: Path, seed: int) -> dict[str, list[Row]]:
    """Oxford-IIIT Pets: ``annotations/trainval.txt`` and ``test.txt``, lines "Abyssinian_100 1 1 1"."""

    def rows(name: str) -> list[Row]:
        found = []
        for line in _lines(folder / "annotations" / name):
            stem, label, *_ = _fields(line, 2, name)
            found.append([f"{stem}.jpg", _number(label, name) - 1, stem.rsplit("_", 1)[0].lower()])
        return found

    return with_val(rows("trainval.txt"), rows("test.txt"), seed)


def ucf101(folder: Path, seed: int) -> dict[str, list[Row]]:
    """UCF101: ``ucfTrainTestlist/classInd.txt``, ``trainlist01.txt``, ``testlist01.txt``; images are named by the clips' middle frames."""
    lists = folder / "ucfTrainTestlist"
    label = {}
    for line in _lines(lists / "classInd.txt"):
        number, name = _fields(line, 2, "classInd.txt")[:2]
        label[name] = _number(number, "classInd.txt") - 1

    def rows(file: str) -> list[Row]:
        found = []
        for line in _lines(lists / file):
            action, _, clip = line.split(" ")[0].partition("/")
            if action not in label or not clip.endswith(".avi"):
                raise UserError(f"data.root: {file} must list <action>/<clip>.avi of an action in classInd.txt, not '{line}'")
            spoken = "_".join(re.findall("[A-Z][^A-Z]*", action))  # ApplyEyeMakeup -> Apply_Eye_Makeup
            found.append([f"{spoken}/{clip.removesuffix('.avi')}.jpg", label[action], spoken])
        return found

    return with_val(rows("trainlist01.txt"), rows("testlist01.txt"), seed)


def sun397(folder: Path, seed: int) -> dict[str, list[Row]]:
    """SUN397: ``ClassName.txt``, ``Training_01.txt``, ``Testing_01.txt``; "/a/church/outdoor" is spoken "outdoor church"."""
    label = {line.removeprefix("/"): number for number, line in enumerate(_lines(folder / "ClassName.txt"))}

    def rows(file: str) -> list[Row]:
        found = []
        for line in _lines(folder / file):
            path = line.removeprefix("/")
            scene = path.rpartition("/")[0]
            if scene not in label:
                raise UserError(f"data.root: {file} lists '{line}', whose class is not in ClassName.txt")
            found.append([path, label[scene], " ".join(reversed(scene.split("/")[1:]))])
        return found

    return with_val(rows("Training_01.txt"), rows("Testing_01.txt"), seed)


def flowers(folder: Path, seed: int) -> dict[str, list[Row]]:
    """Oxford Flowers: ``imagelabels.mat`` (read by scipy) and ``cat_to_name.json``; images are ``image_00001.jpg`` and so on."""
    from scipy.io import loadmat  # takes a second to import

    try:
        labels = [int(label) for label in loadmat(str(folder / "imagelabels.mat"))["labels"].ravel()]
        names = untrusted.parse_json(read_text(folder / "cat_to_name.json"))
        rows = [[f"image_{i:05d}.jpg", label - 1, str(names[str(label)])] for i, label in enumerate(labels, start=1)]
    except Exception as error:  # a broken .mat makes scipy raise a dozen kinds
        raise UserError(f"data.root: looked for imagelabels.mat and cat_to_name.json in {folder}: {error}") from None
    return shares_of_each_class(rows, seed, TRAIN_SHARE, VAL_SHARE)


def _lines(path: Path) -> list[str]:
    """The lines of an official list, comments left out."""
    return [line for line in read_lines(path, "the list") if not line.startswith("#")]


def _fields(line: str, least: int, file: str) -> list[str]:
    fields = line.split()
    if len(fields) < least:
        raise UserError(f"data.root: {file} must have at least {least} fields on each line, not '{line}'")
    return fields


def _number(text: str, file: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise UserError(f"data.root: {file} must number classes from 1, not '{text}'")
    return int(text)
