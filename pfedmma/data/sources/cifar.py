"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) through torchvision, which checks the archives' hashes before it reads them."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from pfedmma.data.sources.base import Open, Source, Split
from pfedmma.system.errors import UserError
from pfedmma.system.files import expanded
from pfedmma.system.lazy import Library

datasets = Library("torchvision.datasets")

SUPERCLASSES = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}


KINDS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # torchvision's classes


def load(name: str, root: str, download: bool) -> Source:
    """``cifar10`` or ``cifar100`` below ``root``, the folder with ``cifar-10-batches-py`` or ``cifar-100-python``.

    Raises:
        UserError: a file is missing or is not the one whose hash torchvision knows.
    """
    kind = getattr(datasets, KINDS[name])
    if not root:
        raise UserError(f"data.root: give the folder that holds {kind.base_folder}/")
    try:
        parts = {part: kind(str(expanded(root)), train=part == "train", download=download) for part in ("train", "test")}
    except (RuntimeError, OSError, EOFError, KeyError) as error:
        hint = "" if download else "; data.download=true fetches it"
        raise UserError(f"data.root: looked for a whole {kind.base_folder}/ in '{root}' ({error}){hint}") from None
    names = tuple(parts["train"].classes)
    splits = {part: Split(torch.tensor(data.targets, dtype=torch.long), partial(_read, data.data)) for part, data in parts.items()}
    return Source(name, names, splits, coarse=superclasses(names) if name == "cifar100" else None)


DATA_SETS: dict[str, Open] = {name: lambda wanted: load(wanted.name, wanted.root, wanted.download) for name in KINDS}


def superclasses(names: tuple[str, ...]) -> tuple[int, ...]:
    """The superclass, an index into `SUPERCLASSES`, of each CIFAR-100 class."""
    number = {fine: i for i, members in enumerate(SUPERCLASSES.values()) for fine in members.split()}
    return tuple(number[name] for name in names)


def _read(images: np.ndarray, index: int) -> Tensor:
    return torch.from_numpy(images[index]).permute(2, 0, 1).contiguous()
