"""What a run sees of its data, in a few kilobytes: so that a run that goes on, or is tested again, notices that they are others.

Paths count from the data's own root, so that a folder that has moved is the same data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pfedmma.data.partition.federated import FederatedData
from pfedmma.data.sources.base import Source, Split

Fingerprint = dict[str, Any]


def fingerprint(source: Source, federated: FederatedData) -> Fingerprint:
    """Of a source and its partition, as JSON keeps it.

    ``classes``: names in order. ``splits``: of each split and class how many images there are, and a hash of their paths, sizes and
    domains. ``clients``: a hash of who trains on what. ``tests``: by split, a hash of what is tested on it.
    """
    split = federated.base.split
    trains = [(client.id, client.domain, client.train) for client in federated.clients]
    tests = [(name, images.indices, images.labels) for name, images in federated.sets().items()]
    return {
        "classes": list(source.class_names),
        "splits": {name: _by_class(part, len(source.class_names)) for name, part in source.splits.items()},
        "clients": _hash(trains),
        "tests": {split: _hash([*tests, *((client.id, client.test) for client in federated.clients)])},
    }


def first_difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first thing that differs, in words; empty if the data are the same. What only one of the two knows is not compared."""
    for position, (old, new) in enumerate(zip(then["classes"], now["classes"], strict=False)):
        if old != new:
            return f"class {position} was '{old}' and is '{new}'"
    if len(then["classes"]) != len(now["classes"]):
        return f"there were {len(then['classes'])} classes and are {len(now['classes'])}"
    splits = [name for name in then["splits"] if name in now["splits"]]
    pairs = [(name, *each) for name in splits for each in zip(now["classes"], then["splits"][name], now["splits"][name], strict=True)]
    for name, label, (old, _), (new, _) in pairs:
        if old != new:
            return f"class '{label}' had {old} {name} images and has {new}"
    for name, label, (_, old), (_, new) in pairs:
        if old != new:
            return f"class '{label}' has other {name} images, as many as before"
    if then["clients"] != now["clients"]:
        return "the clients hold other training images"
    if any(then["tests"][split] != now["tests"][split] for split in then["tests"].keys() & now["tests"].keys()):
        return "the clients are tested on other images"
    return ""


def _by_class(split: Split, classes: int) -> list[list[Any]]:
    """[count, hash] of each class."""
    found = []
    for positions in split.labels.argsort(stable=True).split(split.labels.bincount(minlength=classes).tolist()):
        files = None if split.files is None else [split.files[i] for i in positions.tolist()]
        found.append([len(positions), _hash([positions, split.domain_of(positions), repr(files)])[:12]])  # one text of many files is quick
    return found


def _hash(parts: Sequence[Any]) -> str:
    """Of numbers, texts, tensors of whole numbers, and lists of these."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            digest.update(part.to(torch.int64).numpy().tobytes())
        elif isinstance(part, (list, tuple)):
            for item in part:
                add(item)
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")

    add(list(parts))
    return digest.hexdigest()
