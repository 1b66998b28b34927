"""Test images are made and kept once a node: by all its ranks together, in memory that they share."""

from __future__ import annotations

from pathlib import Path

from pfedmma.comm.node import Nodes
from pfedmma.comm.world import World
from pfedmma.data.partition.federated import FederatedData
from pfedmma.data.pixels.cache import WHAT, create_images
from pfedmma.data.pixels.pixels import Pixels


def share_test_images(federated: FederatedData, pixels: Pixels, nodes: Nodes) -> None:
    """Let the ranks of a node keep the test images once. All ranks enter."""
    if nodes.world.size == 1:
        return
    splits = sorted({images.split for images in federated.sets().values()})

    def create(folder: Path) -> None:
        for split in splits:
            create_images(folder / split, len(pixels.source.splits[split].labels), pixels.preprocess.size)

    with nodes.shared_folder(WHAT, create) as folder:
        for split in splits:
            pixels.images_of(split, share=None if folder is None else folder / split)


def make_test_images(federated: FederatedData, pixels: Pixels, world: World) -> None:
    """Decode every test image, each rank of a node its part of them. All ranks enter."""
    for images in federated.sets().values():
        pixels.images_of(images.split).fill(images.indices[world.local_rank :: world.local_size])
    world.wait("input")
