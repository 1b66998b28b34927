"""Which ranks are on one node, and a folder in which they share what they keep there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pfedmma.comm.world import World
from pfedmma.system.files import temporary_folder
from pfedmma.system.private_folder import new_private_folder

_BYTES = 16  # of a node's key, and of a folder's random name


@dataclass(frozen=True)
class Nodes:
    """``ranks``: those of each node, ascending. ``name``: of this node's shared folders, drawn at random."""

    world: World
    ranks: tuple[tuple[int, ...], ...]
    name: str = ""

    @classmethod
    def from_world(cls, world: World) -> Nodes:
        """The ranks of a node are those that see one temporary folder and each other's processes. All ranks enter.

        A launcher's word for a node does not say that: containers may share its temporary folder or not. Each rank tells all others a
        key of its surroundings, and a name drawn at random, of which that of a node's first rank counts.
        """
        if world.size == 1:
            return cls(world, ((0,),))
        mine = [*hashlib.sha256(_surroundings().encode()).digest()[:_BYTES], *secrets.token_bytes(_BYTES)]
        table = torch.zeros(world.size, 2 * _BYTES)
        table[world.rank] = torch.tensor(mine, dtype=torch.float32)
        rows = world.sum(table.flatten(), "input").view(table.shape).to(torch.uint8).tolist()
        nodes: dict[bytes, list[int]] = {}
        for rank, row in enumerate(rows):
            nodes.setdefault(bytes(row[:_BYTES]), []).append(rank)
        first = nodes[bytes(rows[world.rank][:_BYTES])][0]
        return cls(world, tuple(map(tuple, nodes.values())), f"pfedmma-{bytes(rows[first][_BYTES:]).hex()}")

    @property
    def own(self) -> tuple[int, ...]:
        """The ranks of this rank's node, itself among them."""
        return next(ranks for ranks in self.ranks if self.world.rank in ranks)

    @contextlib.contextmanager
    def shared_folder(self, what: str, create: Callable[[Path], None]) -> Iterator[Path | None]:
        """A private folder in which the ranks of a node open files that its first rank has made by ``create``. All ranks enter.

        It is gone as soon as all have, so that nothing is left behind when the run ends; one of a run that was killed before is removed by
        the next that starts. None for a rank that is alone on its node. ``what`` is kept in it, in words.
        """
        if all(len(ranks) == 1 for ranks in self.ranks):
            yield None
            return
        folder = Path(temporary_folder()) / self.name
        alone = len(self.own) == 1
        first = not alone and self.own[0] == self.world.rank
        with new_private_folder(folder, what) if first else contextlib.nullcontext():
            if first:
                create(folder)
            self.world.wait("input")
            yield None if alone else folder
            self.world.wait("input")


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
