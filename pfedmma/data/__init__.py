"""Data: sources (where images come from), partition (who gets them), images (how they become pixels)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from pfedmma import checks
from pfedmma.clip.backbone import Preprocess
from pfedmma.data import coop, shapes
from pfedmma.data.images import Pixels, camera
from pfedmma.data.partition import Federation, base_to_novel
from pfedmma.data.sources import Source

PROTOCOLS = ("base_to_novel",)
NAMES = ("shapes", *coop.LAYOUTS)


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are divided.

    ``root``: the folder with the data set (``shapes`` needs none). ``shots``: training images a class, 0 for all. ``augment``: ``crop``
    (random resized crop and flip), ``none``, or ``auto`` (``none`` for shapes, ``crop`` for photographs). ``camera``: 0..1, how far each
    client's colours differ from the others'; -1 takes the source's own default.
    """

    name: str = "shapes"
    root: str = ""
    protocol: str = "base_to_novel"
    clients: int = 10
    shots: int = 16
    beta: float = 0.5
    augment: str = "auto"
    camera: float = -1.0

    def __post_init__(self) -> None:
        checks.one_of("name", self.name, NAMES)
        checks.one_of("protocol", self.protocol, PROTOCOLS)
        checks.at_least("clients", self.clients, 1)
        checks.at_least("shots", self.shots, 0)
        checks.positive("beta", self.beta)
        checks.one_of("augment", self.augment, ("auto", "crop", "none"))
        checks.share_or_default("camera", self.camera, -1.0)


def load(config: DataConfig, seed: int, test_split: str, preprocess: Preprocess, device: torch.device) -> tuple[Federation, Pixels]:
    """Open the source that ``config`` names and divide it among clients."""
    source = open_source(config, seed, preprocess.size)
    federation = base_to_novel(source, config.clients, config.shots, seed, test_split)
    strength = source.camera if config.camera == -1.0 else config.camera
    if strength > 0:
        seen = tuple(dataclasses.replace(c, camera=camera(seed, c.id, strength)) for c in federation.clients)
        federation = dataclasses.replace(federation, clients=seen)
    augment = source.augment if config.augment == "auto" else config.augment
    return federation, Pixels(source, preprocess, augment, device)


def open_source(config: DataConfig, seed: int, size: int) -> Source:
    """The source by name; ``size`` is the side at which drawn images are drawn."""
    if config.name == "shapes":
        return shapes.load(seed, size)
    return coop.load(config.name, config.root)
