"""Test images are made and kept once a node: by all its ranks together, in memory that they share."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pfedmma.comm.world import World
from pfedmma.data.partition.federated import FederatedData
from pfedmma.data.pixels.cache import create_shared_file
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.system.files import temporary_folder


def share_test_images(federated: FederatedData, pixels: Pixels, world: World, run_dir: str) -> None:
    """Let the ranks of a node keep the test images once. All ranks enter.

    They lie in a file in the temporary folder that every rank of the node maps; it is unlinked as soon as all have, so that
    nothing is left behind however the run ends.
    """
    if world.local_size == 1:
        return
    for split in sorted({images.split for images in federated.sets().values()}):
        path = _shared_path(run_dir, split)
        if world.local_rank == 0:
            path.unlink(missing_ok=True)
            create_shared_file(path, len(pixels.source.splits[split].labels), pixels.preprocess.size)
        world.wait("input")
        pixels.images_of(split, share=path)
        world.wait("input")
        if world.local_rank == 0:
            path.unlink()


def make_test_images(federated: FederatedData, pixels: Pixels, world: World) -> None:
    """Decode every test image, each rank of a node its part of them. All ranks enter."""
    for images in federated.sets().values():
        pixels.images_of(images.split).fill(images.indices[world.local_rank :: world.local_size])
    world.wait("input")


def _shared_path(run_dir: str, split: str) -> Path:
    """The same on all ranks of a node, and different for two runs at once."""
    launch = [os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")]
    key = hashlib.sha256("\n".join([os.path.abspath(run_dir), *launch]).encode()).hexdigest()[:16]
    return Path(temporary_folder()) / f"pfedmma-{key}-{split}.pixels"
