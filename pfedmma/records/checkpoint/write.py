"""Writing checkpoints: every rank its clients, into one draft folder that rank 0 completes and renames."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from pfedmma.comm.world import World
from pfedmma.records.checkpoint.manifest import FORMAT, _digest, _sha256, folder_of, rounds
from pfedmma.stack.client_state import ClientStore
from pfedmma.system import checks
from pfedmma.system.errors import RankFailure, UserError
from pfedmma.system.files import sync_folder, to_json, write_atomically
from pfedmma.system.options import SAME_RESULT, setting

SHARD_BYTES = 5e8


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a run is saved."""

    every: int = setting(10, "rounds between checkpoints; the last round is always saved; 0: never", SAME_RESULT)
    keep: int = setting(2, "checkpoints that are kept; older ones are deleted", SAME_RESULT)

    def __post_init__(self) -> None:
        checks.at_least("every", self.every, 0)
        checks.at_least("keep", self.keep, 1)


def save_checkpoint(root: Path, round_: int, store: ClientStore, world: World, progress: dict[str, Any], keep: int) -> None:
    """Write the state after ``round_``; older checkpoints beyond ``keep`` go only when the new one is complete. All ranks enter.

    ``progress`` is JSON: what besides tensors a resumed run needs (ledger totals, the configuration it belongs to).
    """
    draft, final = root / f".draft-{round_:06d}", folder_of(root, round_)
    if world.is_main:
        for leftover in root.glob(".draft-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write checkpoints below {root}: {error.strerror}") from error
    world.wait("checkpoint")
    for number, tensors in enumerate(_client_shards(store)):
        _write_shard(draft / f"clients-{world.rank:05d}-{number:05d}.safetensors", tensors)
    world.wait("checkpoint")
    if world.is_main:
        pool = {f"{client}.pool": row for client, row in store.pool.rows.items()}
        _write_shard(draft / "server.safetensors", {"shared": store.shared, "initial": store.initial} | pool)
        shards = {path.name: _sha256(path) for path in sorted(draft.glob("*.safetensors"))}
        manifest = {
            "format": FORMAT,
            "round": round_,
            "layout": {name: list(shape) for name, shape in store.layout.shapes.items()},
            "exchange": store.layout.exchange,
            "shards": shards,
            "progress": progress,
        }
        write_atomically(draft / "manifest.json", to_json(manifest | {"digest": _digest(manifest)}, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)
        try:
            sync_folder(draft)
            draft.rename(final)
            sync_folder(root)
        except OSError as error:
            raise UserError(f"cannot write {final}: {error.strerror}") from error
        # Rounds after this one are what a damaged checkpoint left of an earlier try.
        kept = [r for r in rounds(root) if r <= round_][:keep]
        for old in set(rounds(root)) - set(kept):
            shutil.rmtree(folder_of(root, old), ignore_errors=True)
    world.wait("checkpoint")


def _client_shards(store: ClientStore) -> Iterator[dict[str, Tensor]]:
    """What clients have of their own, in parts of about `SHARD_BYTES`, so that no more than one part is in memory at once."""
    tensors: dict[str, Tensor] = {}
    for client in sorted(store.private):
        tensors[f"{client}.private"] = store.private[client]
        tensors |= {f"{client}.optimizer.{name}": tensor for name, tensor in store.optimizer_state(client).items()}
        if sum(tensor.nbytes for tensor in tensors.values()) >= SHARD_BYTES:
            yield tensors
            tensors = {}
    yield tensors


def _write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    try:
        write_atomically(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    except UserError as error:  # of the disk of one node, it may be
        raise RankFailure(str(error)) from error
