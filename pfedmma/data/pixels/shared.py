"""Test images are made and kept once a node: by all its ranks together, in memory that they share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import torch

from pfedmma.comm.world import World
from pfedmma.data.partition.federated import FederatedData
from pfedmma.data.pixels.cache import create_shared_file
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.pixels.private_folder import new_private_folder
from pfedmma.system.files import temporary_folder

_BYTES = 16  # of a node's key, and of a folder's random name


def share_test_images(federated: FederatedData, pixels: Pixels, world: World) -> None:
    """Let the ranks of a node keep the test images once. All ranks enter.

    They lie in files of a private folder that the ranks of the node map. The folder is gone as soon as all have, so that nothing is
    left behind when the run ends; one of a run that was killed before is removed by the next that starts.
    """
    if world.size == 1:
        return
    together, name = _who_shares(world)
    splits = sorted({images.split for images in federated.sets().values()})
    alone = len(together) == 1
    folder = Path(temporary_folder()) / name
    first = not alone and together[0] == world.rank
    with new_private_folder(folder) if first else contextlib.nullcontext():
        for split in splits if first else ():
            create_shared_file(folder / split, len(pixels.source.splits[split].labels), pixels.preprocess.size)
        world.wait("input")
        for split in splits:
            pixels.images_of(split, share=None if alone else folder / split)
        world.wait("input")


def make_test_images(federated: FederatedData, pixels: Pixels, world: World) -> None:
    """Decode every test image, each rank of a node its part of them. All ranks enter."""
    for images in federated.sets().values():
        pixels.images_of(images.split).fill(images.indices[world.local_rank :: world.local_size])
    world.wait("input")


def _who_shares(world: World) -> tuple[list[int], str]:
    """The ranks that see this rank's temporary files and processes, itself among them, and the name of a folder of theirs.

    A launcher's word for a node does not say that: containers may share its temporary folder or not. Each rank tells all others a
    key of its surroundings, and a name drawn at random, of which the first rank's counts.
    """
    mine = [*hashlib.sha256(_surroundings().encode()).digest()[:_BYTES], *secrets.token_bytes(_BYTES)]
    table = torch.zeros(world.size, 2 * _BYTES)
    table[world.rank] = torch.tensor(mine, dtype=torch.float32)
    rows = world.sum(table.flatten(), "input").view(table.shape).to(torch.uint8)
    keys = rows[:, :_BYTES]
    together = (keys == keys[world.rank]).all(dim=1).nonzero().squeeze(1).tolist()
    return together, f"pfedmma-{bytes(rows[together[0], _BYTES:].tolist()).hex()}"


def _surroundings() -> str:
    """The same text for processes of one user that see each other and the same temporary folder."""
    folder = temporary_folder()
    status = os.stat(folder)
    return "\n".join([socket.gethostname(), *_of_kernel(), str(os.geteuid()), folder, f"{status.st_dev}:{status.st_ino}"])


def _of_kernel() -> Iterator[str]:
    """This start of the machine, and the pid namespace; nothing where the system does not say."""
    with contextlib.suppress(OSError):
        yield Path("/proc/sys/kernel/random/boot_id").read_text()
    with contextlib.suppress(OSError):
        yield os.readlink("/proc/self/ns/pid")
