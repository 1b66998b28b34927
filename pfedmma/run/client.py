"""One client's tensors out of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.config.schema import Config
from pfedmma.records.checkpoint import manifest as checkpoint_manifest
from pfedmma.records.checkpoint import read as checkpoint_read
from pfedmma.records.folder import RunFolder
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.rules import State
from pfedmma.system.errors import UserError


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a run's newest good checkpoint, of ``round``, has of a client: ``tensors`` and ``others`` as `client_state` gives them."""

    config: Config
    round: int
    tensors: State
    others: State
    template: str
    classes: (
        Any  # as `pfedmma.records.checkpoint.manifest.classes_of` makes them; None in checkpoints that were written before they were kept
    )


def kept_of(folder: RunFolder, client: int) -> Kept:
    """What a run has of a client. Raises a `UserError`: no run, no such client, no good checkpoint."""
    folder.require_run()
    config = configuration.load(folder.config)
    if not 0 <= client < config.data.clients:
        raise UserError(f"--client: {folder.path} has clients 0 .. {config.data.clients - 1}, not {client}")
    found = checkpoint_read.newest_good(folder.checkpoints, World(0, 1, torch.device("cpu")))
    if found is None:
        raise UserError(f"{folder.path} has no good checkpoint to take the client from; train with checkpoint.every greater than 0")
    round_, manifest = found
    tensors, others = client_state(checkpoint_manifest.folder_of(folder.checkpoints, round_), manifest, client)
    return Kept(config, round_, tensors, others, manifest["progress"]["template"], manifest["progress"].get("classes"))


def client_state(folder: Path, manifest: dict, client: int) -> tuple[State, State]:
    """One client's tensors {name: [*shape]}, and what it reads of E other clients {name: [E, *shape]}, from a checkpoint.

    A client that never trained has what it started with.
    """
    shapes = {name: tuple(shape) for name, shape in manifest["layout"].items()}
    layout = Layout(shapes, manifest["exchange"])
    store = ClientStore(layout, torch.zeros(layout.size), OptimizerConfig(), torch.device("cpu"))
    checkpoint_read.restore(folder, manifest, store, [client])
    others = store.others([client], manifest["progress"]["reads"])
    read = {} if others is None else {name: tensor[0] for name, tensor in others.tensors.items()}
    return layout.views(store.gather([client])[0]), read
