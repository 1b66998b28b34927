"""Write one client's adapters to a file: ``python -m pfedmma.export RUN --client 3 --out FILE``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pfedmma import checkpoint, rng
from pfedmma import config as configuration
from pfedmma.adapters import file
from pfedmma.adapters.multimodal import AdapterSpec
from pfedmma.adapters.stacked import Layout
from pfedmma.comm import World
from pfedmma.config import Config
from pfedmma.errors import ArgumentParser, UserError, run_main
from pfedmma.methods.adapters import PRESETS, exchange_of
from pfedmma.optim import OptimizerConfig
from pfedmma.runfolder import RunFolder
from pfedmma.store import ClientStore


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m pfedmma.export", description=__doc__)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--client", type=int, required=True, help="id of the client, from 0")
    parser.add_argument("--out", required=True, help="the file to write, *.safetensors")
    args = parser.parse_args(argv)
    round_ = export(RunFolder(args.run), args.client, Path(args.out))
    print(f"client {args.client} after round {round_}: {args.out}")


def export(folder: RunFolder, client: int, out: Path) -> int:
    """Write the adapters that ``client`` has in the newest good checkpoint; returns that checkpoint's round.

    Needs neither data nor backbone: names and shapes are in the checkpoint's manifest.

    Raises:
        UserError: no run, no good checkpoint, no such client, a method without adapters, an unwritable file.
    """
    folder.require_run()
    config = configuration.load(folder.config)
    if config.method.name not in PRESETS:
        raise UserError(f"the method of {folder.path} is {config.method.name}, which has no adapters to export")
    if not 0 <= client < config.data.clients:
        raise UserError(f"--client: {folder.path} has clients 0 .. {config.data.clients - 1}, not {client}")
    if not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}")
    found = checkpoint.newest_good(folder.checkpoints, World(0, 1, torch.device("cpu")))
    if found is None:
        raise UserError(f"{folder.path} has no good checkpoint to export from; train with checkpoint.every greater than 0")
    round_, manifest = found
    tensors, spec = client_state(config, checkpoint.folder_of(folder.checkpoints, round_), manifest, client)
    file.write(out, tensors, spec, config.backbone.name)
    return round_


def client_state(config: Config, folder: Path, manifest: dict, client: int) -> tuple[dict[str, Tensor], AdapterSpec]:
    """One client's tensors {name: [*shape]} from a checkpoint; a client that never trained has what the seed gives it."""
    shapes = {name: tuple(shape) for name, shape in manifest["layout"].items()}
    options = {"scale": config.method.scale, "activation": config.method.activation, "rescale": config.method.rescale}
    spec = AdapterSpec.from_shapes(shapes, **options)
    layout = Layout(spec.shapes(), exchange_of(config.method.name, spec))
    initial = layout.pack(spec.initial(rng.generator(config.seed, "init")))
    store = ClientStore(layout, initial, OptimizerConfig(), torch.device("cpu"))
    checkpoint.restore(folder, manifest, store, [client])
    return layout.views(store.gather([client])[0]), spec


if __name__ == "__main__":
    run_main(main)
