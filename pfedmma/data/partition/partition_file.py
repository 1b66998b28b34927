"""Partition files: who holds what, as JSON, to keep, to look at, and to run again (``data.partition_file``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.sources.base import Source
from pfedmma.system import untrusted
from pfedmma.system.errors import UserError
from pfedmma.system.files import read_text, to_json, write_atomically
from pfedmma.system.options import shown

FORMAT = "pfedmma-partition/1"


def write(path: Path, federated: FederatedData, source: Source) -> None:
    """Write the partition; positions refer to the order of images in the source's splits."""
    content = {
        "format": FORMAT,
        "data": source.name,
        "classes": list(source.class_names),
        "images": {name: len(split.labels) for name, split in source.splits.items()},
        "sets": {name: _set(images, source) for name, images in federated.sets().items()},
        "clients": [
            {"id": c.id, "domain": c.domain, "train": c.train.tolist(), "test": c.test.tolist()} for c in federated.clients
        ],
    }  # fmt: skip
    write_atomically(path, (to_json(content) + "\n").encode())


def _set(images: EvaluationSet, source: Source) -> dict[str, Any]:
    """A test set; ``labels`` are the source's labels of its classes in order."""
    # By the images, since a source may give two labels one name (ImageNet); by name where a class has no test image.
    number = {name: label for label, name in enumerate(source.class_names)}
    of_source = source.splits[images.split].labels[images.indices]
    seen = dict(zip(images.labels.tolist(), of_source.tolist(), strict=True))
    labels = [seen.get(own, number[name]) for own, name in enumerate(images.classes)]
    return {"split": images.split, "labels": labels, "indices": images.indices.tolist()}


def read(path: Path, source: Source) -> FederatedData:
    """The partition that a file holds, of this source.

    Raises:
        UserError: unreadable or malformed, made for other data, an image given twice, a client without images.
    """
    try:
        content = untrusted.parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"data.partition_file: cannot read {path}: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"data.partition_file: {path} is no partition file ({FORMAT}); python -m pfedmma.describe writes one")
    sizes = {name: len(split.labels) for name, split in source.splits.items()}
    for what, here in (("data", source.name), ("classes", list(source.class_names)), ("images", sizes)):
        if content.get(what) != here:
            raise UserError(f"data.partition_file: {path} is of other data: its '{what}' are not those of {source.name} here")
    try:
        return _build(content, source)
    except KeyError as error:
        raise UserError(f"data.partition_file: {path} lacks {error}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"data.partition_file: {path}: {error}") from None


def _build(content: dict[str, Any], source: Source) -> FederatedData:
    """Raises a KeyError that names what is missing, or an AttributeError, TypeError or ValueError."""
    read = {name: _read_set(name, content["sets"][name], source) for name in ("base", "novel", "unseen") if name in content["sets"]}
    base, to_base = read["base"]
    _require_apart({name: images for name, (images, _) in read.items()}, to_base, source)
    train = source.splits["train"].labels
    clients = []
    for number, row in enumerate(content["clients"]):
        if type(row["id"]) is not int or row["id"] != number:
            found = shown(row["id"])
            raise ValueError(f"clients must be numbered 0 .. {len(content['clients']) - 1} in order, found id {found} at position {number}")
        if row["domain"] is not None and row["domain"] not in source.domains:
            raise ValueError(f"client {number} is of domain '{shown(row['domain'])}', which {source.name} has not")
        own, test = _positions(row["train"], len(train)), _positions(row["test"], len(base.indices))
        labels = to_base[train[own]]
        if len(own) == 0 or bool((labels < 0).any()):
            raise ValueError(f"client {number} has no training image, or one that is of no base class")
        clients.append(Client(number, tuple(labels.unique().tolist()), own, labels, test, domain=row["domain"]))
    if not clients:
        raise ValueError("there is no client")
    held = torch.cat([client.train for client in clients])
    if len(held.unique()) != len(held):
        raise ValueError("a training image is given to two clients")
    sets = {name: images for name, (images, _) in read.items()}
    return FederatedData(tuple(clients), base, sets.get("novel"), source.template, sets.get("unseen"))


def _read_set(name: str, value: dict[str, Any], source: Source) -> tuple[EvaluationSet, Tensor]:
    """The test set ``name``, and the label in it of each label of the source, -1 for none."""
    if value["split"] == "train":
        raise ValueError(f"the set '{name}' is of training images")
    labels = source.split_for_tests(value["split"]).labels
    indices, chosen = _positions(value["indices"], len(labels)), _positions(value["labels"], len(source.class_names))
    number = torch.full((len(source.class_names),), -1)
    number[chosen] = torch.arange(len(chosen))
    mapped = number[labels[indices]]
    if len(indices) == 0 or bool((mapped < 0).any()):
        raise ValueError(f"the set '{name}' is empty, or holds an image of none of its classes")
    return EvaluationSet(value["split"], tuple(source.class_names[label] for label in chosen.tolist()), indices, mapped), number


def _require_apart(sets: dict[str, EvaluationSet], to_base: Tensor, source: Source) -> None:
    """Novel classes are none of the base classes, and unseen images none of the base set's."""
    if novel := sets.get("novel"):
        of_source = source.splits[novel.split].labels[novel.indices]
        both = of_source[to_base[of_source] >= 0]
        if len(both):
            raise ValueError(f"the class '{source.class_names[int(both[0])]}' is in the set 'novel' and in 'base'; clients train on it")
    unseen, base = sets.get("unseen"), sets["base"]
    if unseen and unseen.split == base.split and bool(torch.isin(unseen.indices, base.indices).any()):
        raise ValueError("an image is in the set 'unseen' and in 'base'")


def _positions(values: list[int], size: int) -> Tensor:
    """A list of distinct positions below ``size``, checked, as [n]."""
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < size for v in values):
        raise ValueError(f"positions must be a list of whole numbers from 0 to {size - 1}")
    if len(set(values)) != len(values):
        raise ValueError("a list gives a position twice")
    return torch.tensor(values, dtype=torch.long)
