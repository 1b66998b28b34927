"""Write one client's model to a file: ``python -m pfedmma.export RUN --client 3 --out FILE``; or all: ``--client all --out FOLDER``.

Adapters become an adapter file (`pfedmma.load_adapter`), other methods' tensors a client file (`pfedmma.load_client` reads both). It is
what the client is tested with after that round; its text features are its own, also in a run with ``evaluation.text_features=first``.

exit status: 0; 2 if there is no such client or nothing to read.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from pfedmma.clip.backbone import Backbone
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
    parser = ArgumentParser(prog="python -m pfedmma.export", description=__doc__)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--client", type=client_or_all, required=True, metavar="N|all", help="id of the client, from 0; or all")
    parser.add_argument("--round", type=positive, metavar="N", help="the round of a kept checkpoint (default: the newest)")
    parser.add_argument("--out", required=True, help="the file to write, *.safetensors; for all clients the folder")
    args = parser.parse_args(argv)
    if args.client is None:
        files, round_ = export_all(RunFolder(args.run), Path(args.out), args.round)
        print(f"{len(files)} clients after round {round_}: {files[0]} .. {files[-1].name}")
    else:
        round_ = export(RunFolder(args.run), args.client, Path(args.out), args.round)
        print(f"client {args.client} after round {round_}: {args.out}")


def client_or_all(text: str) -> int | None:
    """An argparse ``type``; None stands for all clients."""
    if text != "all" and not text.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is neither a client's id nor all")
    return None if text == "all" else int(text)


def name_of(client: object) -> str:
    """The file of a client among those of all."""
    return f"client{client}.safetensors"


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
    write(folder, kept, out, lambda: kept.load_backbone(folder, torch.device("cpu")))
    return kept.round


def export_all(folder: RunFolder, out: Path, round_: int | None = None) -> tuple[list[Path], int]:
    """As `export`, of all clients in one pass: ``out`` is a folder, made if need be. Returns the files by client, and the round.

    Raises:
        UserError: as `export`, or ``out`` is a file or cannot be made.
    """
    files: list[Path] = []
    load = functools.cache(lambda: kept.load_backbone(folder, torch.device("cpu")))  # one for all clients that need it
    for kept in KeptClient.each_from_run(folder, None, round_):
        refuse_untrained(folder, kept)
        make_folder(out)
        files.append(out / name_of(kept.client))
        write(folder, kept, files[-1], load)
    return sorted(files, key=lambda file: (len(file.name), file.name)), kept.round


def make_folder(out: Path) -> None:
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make the folder {out}: {error.strerror}; choose another one") from None


def refuse_untrained(folder: RunFolder, kept: KeptClient) -> None:
    """Raise a `UserError` if the run's method trains nothing."""
    if not entry_of(kept.config.method.name).trains:
        raise UserError(f"the method of {folder.path} is {kept.config.method.name}, which trains nothing; export a run of another method")


def write(folder: RunFolder, kept: KeptClient, out: Path, backbone: Callable[[], Backbone]) -> None:
    """Write one client's file. ``backbone``: see `KeptClient.answer`."""
    refuse_untrained(folder, kept)
    method = kept.config.method
    tensors, others, _ = kept.answer(backbone)
    classes = kept.classes.base + kept.classes.novel if kept.classes else ()
    made_for = MadeFor(kept.config.backbone.name, FrozenWeights.from_json(kept.backbone), kept.template, classes)
    if entry_of(method.name).adapters:
        options = {"scale": method.scale, "activation": method.activation, "rescale": method.rescale}
        if method.dims:  # its own width alone
            tensors = {name: tensors[name][tuple(map(slice, shape))] for name, shape in kept.own_shapes.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        adapter_file.write(out, tensors, AdapterSpec.from_shapes(shapes, **options), made_for)
    else:
        ClientFile(method, tensors, others, made_for).write(out)


if __name__ == "__main__":
    run_main(main)
