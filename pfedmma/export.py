"""Write one client's model to a file: ``python -m pfedmma.export RUN --client 3 --out FILE``.

Adapters become an adapter file (`pfedmma.load_adapter`), other methods' tensors a client file (`pfedmma.load_client` reads both). It is
what the client is tested with after that round; its text features are its own, also in a run with ``evaluation.text_features=first``.

exit status: 0; 2 if there is no such client or nothing to read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pfedmma.clip.fingerprint import FrozenWeights
from pfedmma.methods.adapters.multimodal import AdapterSpec
from pfedmma.methods.registry import entry_of
from pfedmma.portable import adapter_file
from pfedmma.portable.client_file import ClientFile
from pfedmma.portable.made_for import MadeFor
from pfedmma.records.folder import RunFolder
from pfedmma.run.client import KeptClient
from pfedmma.system.arguments import positive
from pfedmma.system.errors import ArgumentParser, UserError, run_main


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m pfedmma.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--client", type=int, required=True, help="id of the client, from 0")
    parser.add_argument("--round", type=positive, metavar="N", help="the round of a kept checkpoint (default: the newest)")
    parser.add_argument("--out", required=True, help="the file to write, *.safetensors")
    args = parser.parse_args(argv)
    round_ = export(RunFolder(args.run), args.client, Path(args.out), args.round)
    print(f"client {args.client} after round {round_}: {args.out}")


def export(folder: RunFolder, client: int, out: Path, round_: int | None = None) -> int:
    """Write the model that ``client`` has in the newest good checkpoint, or that of ``round_``; returns that checkpoint's round.

    Needs no data, and no backbone but for a client that has not trained in a run with ``method.private_init=own``: for all others names,
    shapes and values are in the checkpoint.

    Raises:
        UserError: no run, no good checkpoint, no such client, a method that trains nothing, an unwritable file.
    """
    folder.require_run()
    if not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}")
    kept = KeptClient.from_run(folder, client, round_)
    method = kept.config.method
    entry = entry_of(method.name)
    if not entry.trains:
        raise UserError(f"the method of {folder.path} is {method.name}, which trains nothing; export a run of another method")
    tensors, others, _ = kept.answer(lambda: kept.load_backbone(folder, torch.device("cpu")))
    classes = kept.classes.base + kept.classes.novel if kept.classes else ()
    made_for = MadeFor(kept.config.backbone.name, FrozenWeights.from_json(kept.backbone), kept.template, classes)
    if entry.adapters:
        options = {"scale": method.scale, "activation": method.activation, "rescale": method.rescale}
        if method.dims:  # its own width alone
            tensors = {name: tensors[name][tuple(map(slice, shape))] for name, shape in kept.own_shapes.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        adapter_file.write(out, tensors, AdapterSpec.from_shapes(shapes, **options), made_for)
    else:
        ClientFile(method, tensors, others, made_for).write(out)
    return kept.round


if __name__ == "__main__":
    run_main(main)
