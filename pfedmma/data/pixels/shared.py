"""Before the first round: test images are made once a node, and unreadable images are left out where that is asked for."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from pfedmma.comm.world import World
from pfedmma.data.partition.federated import Client, Federation, without
from pfedmma.data.pixels.cache import create_shared_file
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import Unreadable
from pfedmma.system.files import temporary_folder


def share_test_images(federation: Federation, pixels: Pixels, world: World, run_dir: str) -> None:
    """Let the ranks of a node keep the test images once. All ranks enter.

    They lie in a file in the temporary folder that every rank of the node maps; it is unlinked as soon as all have, so that
    nothing is left behind however the run ends.
    """
    if world.local_size == 1:
        return
    for split in sorted({images.split for images in federation.sets().values()}):
        path = _shared_path(run_dir, split)
        if world.local_rank == 0:
            path.unlink(missing_ok=True)
            create_shared_file(path, len(pixels.source.splits[split].labels), pixels.preprocess.size)
        world.wait("input")
        pixels.images_of(split, share=path)
        world.wait("input")
        if world.local_rank == 0:
            path.unlink()


def make_test_images(federation: Federation, pixels: Pixels, world: World) -> None:
    """Decode every test image, each rank of a node its part of them. All ranks enter."""
    for images in federation.sets().values():
        pixels.images_of(images.split).fill(images.indices[world.local_rank :: world.local_size])
    world.wait("input")


def _shared_path(run_dir: str, split: str) -> Path:
    """The same on all ranks of a node, and different for two runs at once."""
    launch = [os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")]
    key = hashlib.sha256("\n".join([os.path.abspath(run_dir), *launch]).encode()).hexdigest()[:16]
    return Path(temporary_folder()) / f"pfedmma-{key}-{split}.pixels"


def leave_out_unreadable(federation: Federation, pixels: Pixels, world: World, hosted: list[Client]) -> tuple[Federation, int]:
    """The federation without images that cannot be decoded, and their number. All ranks enter and agree.

    Each rank tries the training images of its own clients and its share of the test images; what it decodes is kept.
    """
    train = torch.cat([client.train for client in hosted]) if hosted else torch.empty(0, dtype=torch.long)
    bad = {"train": _unreadable(pixels, "train", train)}
    for images in federation.sets().values():
        mine = images.indices[world.rank :: world.size]
        bad[images.split] = torch.cat([bad.get(images.split, mine[:0]), _unreadable(pixels, images.split, mine)])
    agreed = {}
    for split, positions in bad.items():
        flags = torch.zeros(len(pixels.source.splits[split].labels))
        flags[positions] = 1.0
        agreed[split] = world.sum(flags, "input").nonzero().squeeze(1)
    count = sum(map(len, agreed.values()))
    return (without(federation, agreed) if count else federation), count


def _unreadable(pixels: Pixels, split: str, positions: Tensor) -> Tensor:
    bad = []
    for position in positions.tolist():
        try:
            if split == "train" and pixels.augment != "none":
                pixels.decoded[position]
            else:
                pixels.fitted(split, torch.tensor([position]))
        except Unreadable as error:
            print(f"warning: left out: {error}", file=sys.stderr)
            bad.append(position)
    return torch.tensor(bad, dtype=torch.long)
