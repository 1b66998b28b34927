"""What one client's model sees in images: ``python -m pfedmma.predict RUN --client 3 IMAGE...``

Images are files, or folders that are searched for images. They are resized and cut to the middle as at evaluation, and seen as they are:
a run's medium and its clients' cameras (data.medium and data.camera, by default with data.name=shapes) are not applied here. RUN may be
finished or interrupted; its newest good checkpoint is read, or that of --round, its data are not. Text features are the client's own, also
in a run with evaluation.text_features=first.

exit status: 0; 1 if some of the images could not be read (they are named, the others are answered); 2 if there is no answer at all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pfedmma.data.pixels.crop import fit
from pfedmma.data.pixels.decode import decode
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.pixels.prefetch import Prefetched, Stopwatch
from pfedmma.data.sources import images
from pfedmma.data.sources.base import Source, Split, Unreadable
from pfedmma.methods import registry
from pfedmma.methods.prompts import cut_prompts
from pfedmma.portable.personal_clip import PersonalCLIP
from pfedmma.records.folder import RunFolder
from pfedmma.run.client import KeptClient
from pfedmma.system.arguments import positive
from pfedmma.system.console import ProgressBar, warn
from pfedmma.system.errors import ArgumentParser, UserError, run_main
from pfedmma.system.files import expanded, read_text, to_json

T = TypeVar("T")
LABEL_SPACES = ("all", "base", "novel", "own")
Answer = tuple[Path, Tensor | Unreadable]  # probabilities of the classes [K], or why there are none


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    folder, paths = RunFolder(args.run), find_images(args.images)
    device = device_of(args.device)
    kept = KeptClient.from_run(folder, args.client, args.round)
    names = given_names(args) or classes_of(folder, kept, args.client, args.classes)
    backbone = kept.load_backbone(folder, device)
    tensors, others, _ = kept.answer(lambda: backbone)
    model = PersonalCLIP.from_tensors(registry.build(kept.config.method, backbone), tensors, others, kept.template)
    if cut := cut_prompts(backbone, kept.template, names):
        warn(cut)
    answers = predict(model, names, paths, args.batch_size)
    if not args.json:
        print(f"client {args.client} of {folder.path} after round {kept.round} ({kept.config.method.name}), {len(names)} classes")
    unread = 0
    with ProgressBar("images", len(paths), bar=len(paths) > args.batch_size, beside_answers=True) as bar:
        for path, answer in answers:
            if isinstance(answer, Unreadable):
                if len(paths) == 1:
                    raise answer
                bar.complain(f"error: {answer}")
                unread += 1
            else:
                best = top(names, answer, args.top)
                row = {"image": str(path), "client": args.client, "round": kept.round, "top": best}
                bar.say(to_json(row) if args.json else readable(path, best))
            bar.advance()
    if unread == len(paths):
        raise UserError(f"none of the {unread} images can be read; repair or replace them")
    if unread:
        print(f"error: {unread} of {len(paths)} images could not be read", file=sys.stderr)
        sys.stdout.flush()
        raise SystemExit(1)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m pfedmma.predict", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders that are searched for images")
    parser.add_argument("--client", type=int, required=True, help="id of the client, from 0")
    parser.add_argument("--round", type=positive, metavar="N", help="the round of a kept checkpoint (default: the newest)")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="how many classes are shown (default 5)")
    spaces = parser.add_mutually_exclusive_group()
    spaces.add_argument(
        "--classes",
        choices=LABEL_SPACES,
        default="all",
        help="the run's base classes, its novel ones, all (default), or those that the client holds",
    )
    spaces.add_argument("--names", help="other classes, separated by commas")
    spaces.add_argument("--names-file", type=Path, metavar="FILE", help="other classes, one a line")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, as soon as it is known")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="images of one pass (default 32)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one")
    return parser.parse_intermixed_args(argv)


def find_images(given: Sequence[str]) -> list[Path]:
    """The files among ``given``, and the images below its folders in order of their paths; other files are counted on stderr.

    Raises:
        UserError: something is not there, or a folder holds no image.
    """
    paths: list[Path] = []
    searched: list[images.Found] = []
    for name in given:
        path = Path(name)
        if os.path.isdir(path):
            searched.append(images.find(path))
            if not searched[-1].images:
                looked = ", ".join(sorted(images.SUFFIXES))
                raise UserError(f"there is no image in the folder {name}; looked for {looked} and what is one inside")
            paths += searched[-1].images
        elif os.path.exists(path):
            paths.append(path)
        else:
            raise UserError(f"there is no image {name}")
    if note := images.left_out_note(searched):
        warn(note)
    return paths


def device_of(name: str) -> torch.device:
    gpu = torch.cuda.is_available()
    if name == "cuda" and not gpu:
        raise UserError("--device: 'cuda' is asked for, but torch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if gpu and name != "cpu" else "cpu")


def given_names(args: argparse.Namespace) -> tuple[str, ...]:
    """The classes of ``--names`` or ``--names-file``, each once; empty if neither is given."""
    if args.names is None and args.names_file is None:
        return ()
    option = "--names" if args.names_file is None else "--names-file"
    try:
        parts = args.names.split(",") if args.names_file is None else read_text(expanded(args.names_file)).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: cannot read {args.names_file}: {getattr(error, 'strerror', None) or error}") from None
    names = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not names:
        raise UserError(f"{option}: gives no class name; write for example --names 'cat,dog'")
    for name in names:
        if not name.isprintable():  # halves of characters among them, which a tokenizer takes no more than a terminal
            raise UserError(f"{option}: {name[:80]!a} is no class name; write plain text")
    return names


def classes_of(folder: RunFolder, kept: KeptClient, client: int, space: str) -> tuple[str, ...]:
    """The run's own classes: ``all``, ``base``, ``novel``, or ``own``, those that ``client`` holds."""
    classes = kept.classes
    if classes is None:
        raise UserError(f"the checkpoint in {folder.path} does not say the run's classes; name some by --names")
    spaces = {"all": classes.base + classes.novel, "base": classes.base, "novel": classes.novel, "own": classes.of_client(client)}
    if not spaces[space]:
        raise UserError(f"--classes: {folder.path} has no {space} classes, its protocol is {kept.config.data.protocol}; use base or all")
    return spaces[space]


def predict(model: PersonalCLIP, names: Sequence[str], paths: Sequence[Path], size: int) -> Iterator[Answer]:
    """Each image's probabilities of the classes ``names``, in order; images are read while earlier ones are in the model."""
    backbone = model.method.backbone
    classify = model.classifier(names)
    files = Split(torch.zeros(len(paths), dtype=torch.long), lambda i: decode(paths[i]))
    pixels = Pixels(Source("files", tuple(names), {"train": files}), backbone.preprocess, "none", backbone.device)

    def read(index: int) -> Answer:
        try:
            return paths[index], fit(files.read(index), backbone.preprocess)
        except Unreadable as error:
            return paths[index], error

    ahead: Prefetched[list[Answer]] = Prefetched(batches(read, len(paths), size), Stopwatch())
    for batch in ahead:
        seen = [image for _, image in batch if isinstance(image, Tensor)]
        rows = iter(classify(pixels.normalise(torch.stack(seen))).float().softmax(dim=-1).cpu() if seen else ())
        for path, image in batch:
            yield path, next(rows) if isinstance(image, Tensor) else image


def batches(read: Callable[[int], T], count: int, size: int) -> Iterator[list[T]]:
    """What ``read`` makes of 0 .. ``count`` - 1, ``size`` at a time, several of them side by side."""
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="pfedmma-decode") as threads:
        for start in range(0, count, size):
            yield list(threads.map(read, range(start, min(start + size, count))))


def top(names: Sequence[str], probabilities: Tensor, count: int) -> list[dict[str, Any]]:
    """The most probable classes, at most ``count``, first the first of equals."""
    values, order = probabilities.sort(descending=True, stable=True)
    best = zip(order[:count].tolist(), values[:count].tolist(), strict=True)
    return [{"class": names[index], "probability": value} for index, value in best]


def readable(path: Path, best: Sequence[dict[str, Any]]) -> str:
    shown = os.fsencode(path).decode("utf-8", "replace")
    return "\n".join([shown, *(f"  {100.0 * row['probability']:6.2f} %  {row['class']}" for row in best)])


if __name__ == "__main__":
    run_main(main)
