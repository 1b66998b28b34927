"""Writing checkpoints: every rank its clients, into one draft folder that rank 0 completes and renames."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from pfedmma.comm.world import World
from pfedmma.records.checkpoint.manifest import SERVER_FILE, Manifest, Progress, folder_of, rounds, sha256
from pfedmma.stack.client_state import ClientStates
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


@dataclass(frozen=True)
class Snapshot:
    """What stands after ``round``: clients' own state, the server's tensors by name (its ``state_dict``), and the progress.

    ``texts``: by test set, text features [n] that all clients are tested with, see `pfedmma.accuracy.first_texts`. ``mine``: whether this
    rank writes a client's state; each is written by one.
    """

    round: int
    states: ClientStates
    server: Mapping[str, Tensor]
    progress: Progress
    texts: Mapping[str, Tensor] = field(default_factory=dict)
    mine: Callable[[int], bool] = lambda client: True


def save_checkpoint(root: Path, snapshot: Snapshot, world: World, keep: int) -> None:
    """Write a snapshot; older checkpoints beyond ``keep`` go only when the new one is complete. All ranks enter.

    That of the round which is reported so far stays.

    Raises:
        UserError: it cannot be written; a `RankFailure` if that may be so on one node alone.
    """
    draft = root / f".draft-{snapshot.round:06d}"
    if world.is_main:
        for leftover in root.glob(".draft-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write checkpoints below {root}: {error.strerror}") from error
    world.wait("checkpoint")
    for number, tensors in enumerate(_client_shards(snapshot.states, snapshot.mine)):
        _write_shard(draft / f"clients-{world.rank:05d}-{number:05d}.safetensors", tensors)
    world.wait("checkpoint")
    if world.is_main:
        _complete(draft, root, snapshot)
        # Rounds after this one are what a damaged checkpoint left of an earlier try.
        kept = [r for r in rounds(root) if r <= snapshot.round][:keep]
        best = snapshot.progress.selected
        for old in set(rounds(root)) - {*kept, *([best.round] if best else [])}:
            shutil.rmtree(folder_of(root, old), ignore_errors=True)
    world.wait("checkpoint")


def _complete(draft: Path, root: Path, snapshot: Snapshot) -> None:
    """Add the server's tensors and the manifest to what all ranks have written, and give the draft its name."""
    named = {f"server.{name}": tensor for name, tensor in snapshot.server.items()}
    named |= {f"text.{name}": tensor for name, tensor in snapshot.texts.items()}
    _write_shard(draft / SERVER_FILE, {"initial": snapshot.states.initial} | named)
    final = folder_of(root, snapshot.round)
    shards = {path.name: sha256(path) for path in sorted(draft.glob("*.safetensors"))}
    manifest = Manifest(snapshot.round, snapshot.states.layout, shards, snapshot.progress)
    write_atomically(draft / "manifest.json", to_json(manifest.to_json(), indent=1).encode())
    shutil.rmtree(final, ignore_errors=True)
    try:
        sync_folder(draft)
        draft.rename(final)
        sync_folder(root)
    except OSError as error:
        raise UserError(f"cannot write {final}: {error.strerror}") from error


def _client_shards(states: ClientStates, mine: Callable[[int], bool]) -> Iterator[dict[str, Tensor]]:
    """What clients that are ``mine`` have, in parts of about `SHARD_BYTES`, so that no more than one part is in memory at once."""
    tensors: dict[str, Tensor] = {}
    for client in sorted(filter(mine, {*states.own, *(client for rows in states.beside.values() for client in rows)})):
        tensors |= {f"{client}.private": states.own[client]} if client in states.own else {}
        tensors |= {f"{client}.optimizer.{name}": tensor for name, tensor in states.optimizer_state(client).items()}
        tensors |= {f"{client}.{kind}": rows[client] for kind, rows in states.beside.items() if client in rows}
        if sum(tensor.nbytes for tensor in tensors.values()) >= SHARD_BYTES:
            yield tensors
            tensors = {}
    yield tensors


def _write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    bad = next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)
    if bad is not None:
        raise RankFailure(f"'{bad}' holds numbers that are not finite, and is not saved; the checkpoint before stays, lower optimizer.lr")
    try:
        write_atomically(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    except UserError as error:  # of the disk of one node, it may be
        raise RankFailure(str(error)) from error
