"""Reading checkpoints: the newest whole one, and what it has of the server and of clients."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pfedmma.comm.world import World
from pfedmma.records.checkpoint.manifest import SERVER, Damaged, _require_progress, folder_of, read_manifest, rounds, verify
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.optim import initial_state
from pfedmma.stack.rules import POOL
from pfedmma.system.errors import UserError


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
