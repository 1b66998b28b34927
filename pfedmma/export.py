"""Write one client's model to a file: ``python -m pfedmma.export RUN --client 3 --out FILE``.

Adapters become an adapter file (`pfedmma.load_adapter`), other methods' tensors a client file (`pfedmma.load_client` reads both).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.config.schema import Config
from pfedmma.methods.adapters.multimodal import AdapterSpec
from pfedmma.methods.base import State
from pfedmma.methods.pfedmma import PRESETS
from pfedmma.portable import adapter_file, client_file
from pfedmma.records.checkpoint import manifest as checkpoint_manifest
from pfedmma.records.folder import RunFolder
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.linear import Layout
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.system.errors import ArgumentParser, UserError, run_main


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m pfedmma.export", description=__doc__)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--client", type=int, required=True, help="id of the client, from 0")
    parser.add_argument("--out", required=True, help="the file to write, *.safetensors")
    args = parser.parse_args(argv)
    round_ = export(RunFolder(args.run), args.client, Path(args.out))
    print(f"client {args.client} after round {round_}: {args.out}")


def export(folder: RunFolder, client: int, out: Path) -> int:
    """Write the model that ``client`` has in the newest good checkpoint; returns that checkpoint's round.

    Needs neither data nor backbone: names, shapes and starting values are in the checkpoint.

    Raises:
        UserError: no run, no good checkpoint, no such client, a method that trains nothing, an unwritable file.
    """
    folder.require_run()
    if not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}")
    kept = kept_of(folder, client)
    method, backbone = kept.config.method, kept.config.backbone.name
    if method.name == "zeroshot":
        raise UserError(f"the method of {folder.path} is zeroshot, which trains nothing; export a run of another method")
    if method.name in PRESETS:
        options = {"scale": method.scale, "activation": method.activation, "rescale": method.rescale}
        shapes = {name: tuple(tensor.shape) for name, tensor in kept.tensors.items()}
        adapter_file.write(out, kept.tensors, AdapterSpec.from_shapes(shapes, **options), backbone)
    else:
        settings: dict[str, object] = {"name": method.name}
        if hasattr(method, method.name):  # methods registered from outside have no section
            settings[method.name] = dataclasses.asdict(getattr(method, method.name))
        client_file.write(out, kept.tensors, kept.others, settings, backbone, kept.template)
    return kept.round


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a run's newest good checkpoint, of ``round``, has of a client: ``tensors`` and ``others`` as `client_state` gives them."""

    config: Config
    round: int
    tensors: State
    others: State
    template: str
    classes: Any  # as `pfedmma.records.checkpoint.classes.progress` makes them; None in checkpoints that were written before they were kept


def kept_of(folder: RunFolder, client: int) -> Kept:
    """What a run has of a client. Raises a `UserError`: no run, no such client, no good checkpoint."""
    folder.require_run()
    config = configuration.load(folder.config)
    if not 0 <= client < config.data.clients:
        raise UserError(f"--client: {folder.path} has clients 0 .. {config.data.clients - 1}, not {client}")
    found = checkpoint_manifest.newest_good(folder.checkpoints, World(0, 1, torch.device("cpu")))
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
    checkpoint_manifest.restore(folder, manifest, store, [client])
    others = store.others([client], manifest["progress"]["reads"])
    read = {} if others is None else {name: tensor[0] for name, tensor in others.tensors.items()}
    return layout.views(store.gather([client])[0]), read


if __name__ == "__main__":
    run_main(main)
