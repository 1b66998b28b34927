"""Data: sources (where images come from), partition (who gets them), images (how they become pixels)."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.partition import partition_file
from pfedmma.data.partition.base_to_novel import base_to_novel
from pfedmma.data.partition.camera import camera
from pfedmma.data.partition.federated import FederatedData
from pfedmma.data.partition.protocols import spread
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources import cifar, coop, folders, lists, shapes
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source, template_problem
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import SAME_RESULT, setting

SPLIT_SEED = 0  # a split that has to be made up is part of the data: the same for every seed of a run
PROTOCOLS = ("base_to_novel", "iid", "dirichlet", "pachinko", "domains")
OFFICE = ("amazon", "caltech", "dslr", "webcam")
FOLDERS = ("imagefolder", "domainfolder", "office_caltech10")
NAMES = ("shapes", *coop.LAYOUTS, "fgvc_aircraft", "imagenet", "cifar10", "cifar100", "domainnet", *FOLDERS)


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are divided among clients."""

    name: str = setting("shapes", "the data set, by a name of the table of data sets; shapes is drawn and needs no files")
    root: str = setting("", "folder with the data set", SAME_RESULT)
    protocol: str = setting("base_to_novel", "how images are divided among clients: base_to_novel, iid, dirichlet, pachinko or domains")
    clients: int = setting(10, "number of clients")
    shots: int = setting(16, "training images of a class; 0: all")
    beta: float = setting(0.5, "concentration of the Dirichlet draws; smaller means more skew")
    min_samples: int = setting(1, "training images that every client gets at least")
    held_out_domain: str = setting("", "a domain that no client holds, tested as unseen")
    partition_file: str = setting("", "a partition written by python -m pfedmma.describe --out; it takes the place of data.protocol")
    template: str = setting(
        "generic",
        'class prompt: generic ("a photo of a {}."), dataset (the usual one of the data set), or a text with {}',
    )
    test_fraction: float = setting(0.3, "share of the images that becomes the test split of folders without one")
    all_classes: bool = setting(False, "all 345 classes of DomainNet instead of the usual ten")
    download: bool = setting(False, "let torchvision fetch CIFAR", SAME_RESULT)
    augment: str = setting(
        "auto",
        "training images: crop (random resized crop and flip), none, or auto (none for shapes, crop for photographs)",
    )
    camera: float = setting(-1.0, "how far each client's colours differ from the others', 0 to 1; -1: the data set's own default")
    on_bad_image: str = setting("stop", "an unreadable image ends the run (stop), or is left out and counted (skip)")
    cache_gb: float = setting(8.0, "GB of decoded images kept in memory; the rest lies in a temporary file", SAME_RESULT)

    def __post_init__(self) -> None:
        checks.one_of("name", self.name, NAMES)
        checks.one_of("protocol", self.protocol, PROTOCOLS)
        checks.at_least("clients", self.clients, 1)
        checks.at_least("shots", self.shots, 0)
        checks.positive("beta", self.beta)
        checks.at_least("min_samples", self.min_samples, 1)
        checks.in_unit_interval("test_fraction", self.test_fraction)
        checks.one_of("augment", self.augment, ("auto", "crop", "none"))
        checks.share_or_default("camera", self.camera, -1.0)
        checks.one_of("on_bad_image", self.on_bad_image, ("stop", "skip"))
        checks.at_least("cache_gb", self.cache_gb, 0)
        if self.template not in ("generic", "dataset") and (self.template.count("{}") != 1 or template_problem(self.template)):
            raise UserError(f"template: '{self.template[:80]}' must be 'generic', 'dataset' or a text with one {{}} for the class name")
        if self.held_out_domain and self.protocol == "base_to_novel":
            raise UserError("held_out_domain: base_to_novel has no unseen domain; use data.protocol=domains, dirichlet or iid")


def load(config: DataConfig, seed: int, test_split: str, preprocess: Preprocess, device: torch.device) -> tuple[FederatedData, Pixels]:
    """Open the source that ``config`` names and divide it among clients."""
    source = open_source(config, seed, preprocess.size)
    federated = divide(source, config, seed, test_split)
    strength = source.camera if config.camera == -1.0 else config.camera
    if strength > 0:
        seen = tuple(dataclasses.replace(c, camera=camera(seed, c.id, strength)) for c in federated.clients)
        federated = dataclasses.replace(federated, clients=seen)
    augment = source.augment if config.augment == "auto" else config.augment
    return federated, Pixels(source, preprocess, augment, device, config.cache_gb)


def open_source(config: DataConfig, seed: int, size: int) -> Source:
    """The source by name, with the wanted prompt template; ``size`` is the side at which drawn images are drawn."""
    source = _open(config, seed, size)
    templates = {"generic": GENERIC_TEMPLATE, "dataset": source.own_template or GENERIC_TEMPLATE}
    return dataclasses.replace(source, template=templates.get(config.template, config.template))


def _open(config: DataConfig, seed: int, size: int) -> Source:
    name, root = config.name, config.root
    if name == "shapes":
        return shapes.load(seed, size)
    if name in coop.LAYOUTS:
        return coop.load(name, root, SPLIT_SEED)
    if name in ("cifar10", "cifar100"):
        return cifar.load(name, root, config.download)
    if name == "fgvc_aircraft":
        return lists.aircraft(root)
    if name == "imagenet":
        return lists.imagenet(root)
    if name == "domainnet":
        return lists.domainnet(root, config.all_classes)
    if name == "office_caltech10":
        return folders.domain_folder(name, lists.folder_below(root, "office_caltech_10"), SPLIT_SEED, config.test_fraction, OFFICE)
    if not root:
        raise UserError("data.root: give the folder of images")
    folder = Path(os.path.expanduser(root))
    if name == "imagefolder":
        return folders.image_folder(folder, SPLIT_SEED, config.test_fraction)
    return folders.domain_folder(name, folder, SPLIT_SEED, config.test_fraction)


def divide(source: Source, config: DataConfig, seed: int, test_split: str) -> FederatedData:
    """The partition that ``config`` asks for; it depends on the source and the seed alone."""
    if config.partition_file:
        federated = partition_file.read(Path(config.partition_file), source)
        if federated.base.split != test_split:
            raise UserError(
                f"data.partition_file: {config.partition_file} divides the '{federated.base.split}' split; set evaluation.split to it"
            )
        if len(federated.clients) != config.clients:
            held = len(federated.clients)
            raise UserError(f"data.clients: {config.partition_file} has {held} clients, not {config.clients}; set data.clients={held}")
        return federated
    if config.protocol == "base_to_novel":
        return base_to_novel(source, config.clients, config.shots, seed, test_split)
    return spread(
        source, config.protocol, config.clients, config.shots, config.beta, config.min_samples, seed, test_split, config.held_out_domain
    )
