"""Checkpoints: safetensors shards and a JSON manifest with their hashes, whole or absent.

``checkpoints/round-000012/`` holds ``server.safetensors`` (the shared tensors, the state in which clients start, the server's pool),
``clients-*.safetensors`` of each rank that wrote it, and ``manifest.json``. Tensors are keyed by client id, never by rank, so that
any number of ranks can read them. Every rank writes into one draft folder; only when all have finished does rank 0 write the
manifest and rename the draft. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pfedmma.comm.ledger import Ledger
from pfedmma.comm.world import World
from pfedmma.methods.base import POOL, RULES
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.optim import initial_state
from pfedmma.system import checks, untrusted
from pfedmma.system.errors import RankFailure, UserError
from pfedmma.system.files import sync_folder, to_json, write_atomically

FORMAT = "pfedmma-checkpoint/1"
SHARD_BYTES = 5e8
SERVER = ("shared", "initial")  # tensors of the server, by the name of their place in the store
_NAME = re.compile(r"round-([0-9]{6,15})")
_SHARD = re.compile(r"server\.safetensors|clients-[0-9]{5,}-[0-9]{5,}\.safetensors")


@dataclass(frozen=True)
class CheckpointConfig:
    """``every``: rounds between checkpoints (the last round is always kept; 0 = never). ``keep``: how many to keep."""

    every: int = 10
    keep: int = 2

    def __post_init__(self) -> None:
        checks.at_least("every", self.every, 0)
        checks.at_least("keep", self.keep, 1)


class Damaged(Exception):
    """A checkpoint that is not what its manifest says."""


def folder_of(root: Path, round_: int) -> Path:
    return root / f"round-{round_:06d}"


def rounds(root: Path) -> list[int]:
    """Rounds of the checkpoints below ``root``, newest first."""
    if not root.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in root.iterdir())
    return sorted((int(match[1]) for match in found if match), reverse=True)


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


def newest_good(root: Path, world: World) -> tuple[int, dict[str, Any]] | None:
    """(round, manifest) of the newest undamaged checkpoint, None where there is none. All ranks enter and agree.

    Warns about each damaged one.
    """
    candidates = rounds(root)
    if world.size > 1:  # rank 0's view of the folder decides
        listed = torch.full((64,), -1.0, dtype=torch.float64)
        if world.is_main:
            listed[: len(candidates[:64])] = torch.tensor(candidates[:64], dtype=torch.float64)
        else:
            listed.zero_()
        candidates = [int(r) for r in world.sum(listed, "resume").tolist() if r >= 0]
    for round_ in candidates:
        try:
            manifest = read_manifest(folder_of(root, round_))
            _require_progress(manifest["progress"])
            verify(folder_of(root, round_), list(manifest["shards"].items())[world.rank :: world.size])
            problem = ""
        except Damaged as error:
            manifest, problem = {}, str(error)
        if problem:
            print(f"warning: the checkpoint of round {round_} is damaged ({problem})", file=sys.stderr)
        if float(world.sum(torch.tensor([float(bool(problem))]), "resume")) == 0.0:
            return round_, manifest
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, its fields checked. Raises `Damaged`."""
    try:
        manifest = untrusted.read_json(folder / "manifest.json")
    except (OSError, ValueError) as error:
        raise Damaged(f"manifest.json: {error}") from None
    kinds = {"format": str, "round": int, "layout": dict, "exchange": dict, "shards": dict, "progress": dict}
    for name, kind in kinds.items():
        if not isinstance(manifest, dict) or type(manifest.get(name)) is not kind:
            raise Damaged(f"manifest.json has no {name}")
    if manifest["format"] != FORMAT:
        raise Damaged(f"manifest.json says format '{manifest['format'][:40]}', not {FORMAT}")
    digest = manifest.pop("digest", None)
    if digest != _digest(manifest):
        raise Damaged("manifest.json does not have the digest that it gives")
    if folder_of(folder.parent, manifest["round"]) != folder:
        raise Damaged(f"manifest.json is of round {manifest['round']}")
    if "server.safetensors" not in manifest["shards"] or not all(_SHARD.fullmatch(name) for name in manifest["shards"]):
        raise Damaged("manifest.json names no server.safetensors, or a file that is no part of a checkpoint")
    _require_layout(folder, manifest)
    return manifest


def _require_layout(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise `Damaged` unless the layout is one, and server.safetensors has room for it: what it says is allocated."""
    layout, exchange = manifest["layout"], manifest["exchange"]
    if not all(isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) for shape in layout.values()):
        raise Damaged("the layout in manifest.json is no shape of each tensor")
    if not (exchange.keys() <= layout.keys() and all(rule in RULES for rule in exchange.values())):
        raise Damaged(f"the exchange in manifest.json is no rule ({', '.join(RULES)}) of some of its tensors")
    try:
        held = (folder / "server.safetensors").stat().st_size
    except OSError as error:
        raise Damaged(f"server.safetensors: {error.strerror}") from None
    # One client's state lies in it. A shape with a 0 has no numbers, however large the rest.
    if 4 * sum(math.prod(shape) for shape in layout.values()) > held or any(n > held for shape in layout.values() for n in shape):
        raise Damaged("the layout in manifest.json is larger than server.safetensors")


def _require_progress(progress: dict[str, Any]) -> None:
    """Raise `Damaged` unless ``progress`` has what a resumed run and an export take from it."""
    kinds: dict[str, Any] = {"config": dict, "template": str, "reads": int, "ledger": dict, "zero_shot": (dict, type(None))}
    wrong = [name for name, kind in kinds.items() if name not in progress or not isinstance(progress[name], kind)]
    if wrong or progress["reads"] < 0 or not _all_numbers(progress["ledger"]):
        raise Damaged(f"the progress in manifest.json has no {wrong[0] if wrong else 'numbers that can be'}")
    try:
        tried = Ledger(1)
        tried.restore(progress["ledger"])
        tried.totals()
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise Damaged(f"the ledger in manifest.json is none: {error}") from None


def _all_numbers(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return all(map(_all_numbers, value.values() if isinstance(value, dict) else value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _digest(manifest: dict[str, Any]) -> str:
    """Hash of a manifest's content, whatever the layout of its text."""
    return hashlib.sha256(json.dumps(json.loads(to_json(manifest)), sort_keys=True).encode()).hexdigest()


def verify(folder: Path, shards: Iterable[tuple[str, str]]) -> None:
    """Raise `Damaged` unless every (file name, hash) holds."""
    for name, digest in shards:
        try:
            if _sha256(folder / name) != digest:
                raise Damaged(f"{name} does not have the hash that manifest.json gives")
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror}") from None


def restore(folder: Path, manifest: dict[str, Any], store: ClientStore, ids: Iterable[int]) -> None:
    """Fill ``store`` with what the server has and the private state of clients ``ids``.

    Raises:
        UserError: a shard cannot be read, or holds what does not fit ``store``.
    """
    layout = [(name, list(shape)) for name, shape in store.layout.shapes.items()]
    if list(manifest["layout"].items()) != layout or manifest["exchange"] != store.layout.exchange:
        raise UserError(f"the checkpoint {folder} is of other tensors than this run's; go on with the settings and the backbone of its run")
    widths = _widths(store)
    wanted = {str(i) for i in ids}
    states: dict[int, dict[str, Tensor]] = {}
    missing = set(SERVER)
    for name, tensor in read_tensors(folder, manifest, wanted):
        client, kind = _place(folder, name)
        if kind.startswith("optimizer.") and store.optimizer.state == "reset":
            continue  # of a run that keeps it, for who needs the model alone
        if kind not in widths or list(tensor.shape) != [widths[kind]] or not tensor.is_floating_point():
            raise UserError(f"the checkpoint {folder} does not fit its manifest: tensor '{name[:60]}' is one too many, or of another size")
        missing.discard(name)
        if name in SERVER:
            getattr(store, name).copy_(tensor)
        elif kind == "private":
            store.private[client] = tensor.float()
        elif kind == "pool":
            store.pool.rows[client] = tensor.float().to(store.device)
        else:
            state = states.setdefault(client, {})
            state[kind.removeprefix("optimizer.")] = tensor.float()
            if store.optimizer_state_is_whole(state):
                store.keep_optimizer_state(client, states.pop(client))
    if missing or states:
        raise UserError(f"the checkpoint {folder} lacks a part of the state of {'the server' if missing else 'an optimizer'}")


def _place(folder: Path, name: str) -> tuple[int, str]:
    """(client, kind) of the tensor ``name``; (-1, name) of the server's."""
    if name in SERVER:
        return -1, name
    client, _, kind = name.partition(".")
    if not re.fullmatch("0|[1-9][0-9]{0,17}", client):
        raise UserError(f"the checkpoint {folder} holds a tensor '{name[:60]}', which is of no client")
    return int(client), kind


def _widths(store: ClientStore) -> dict[str, int]:
    """How many numbers there are in each kind of tensor."""
    layout = store.layout
    pooled = layout.columns.get(POOL, slice(0, 0))
    state = initial_state(store.optimizer, 1, layout.size, torch.device("meta"))
    return {
        "shared": layout.exchanged_size,
        "initial": layout.size,
        "private": layout.size - layout.exchanged_size,
        "pool": pooled.stop - pooled.start,
        **{f"optimizer.{name}": tensor.shape[1] for name, tensor in state.items()},
    }


def read_tensors(folder: Path, manifest: dict[str, Any], clients: set[str]) -> Iterable[tuple[str, Tensor]]:
    """All of the server's (`SERVER`, "<id>.pool"), and "<id>.private", "<id>.optimizer.<name>" of the clients wanted."""
    for shard in manifest["shards"]:
        try:
            with safe_open(folder / shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, it is no dict
                    if name in SERVER or name.endswith(".pool") or name.split(".", 1)[0] in clients:
                        yield name, file.get_tensor(name)
        except (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:  # odd dtypes
            raise UserError(f"cannot read {folder / shard}: {str(error)[:200]}") from None


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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
