"""Write one client's model to a file: ``python -m pfedmma.export RUN --client 3 --out FILE``.

Adapters become an adapter file (`pfedmma.load_adapter`), other methods' tensors a client file (`pfedmma.load_client` reads both).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pfedmma.methods.adapters.multimodal import AdapterSpec
from pfedmma.methods.pfedmma import PRESETS
from pfedmma.portable import adapter_file, client_file
from pfedmma.records.folder import RunFolder
from pfedmma.run.client import kept_of
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


if __name__ == "__main__":
    run_main(main)
