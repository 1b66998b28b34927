"""Who would hold what in a run: ``python -m pfedmma.describe [--config FILE] [--plot FILE] [--out FILE] [key=value ...]``

Divides the data set among clients as a run with these settings would, and shows what each client holds and is tested on. Images
are looked up, not read, unless --check asks for it, and nothing is trained. What --out writes, a run takes with data.partition_file=FILE.

exit status: 0; 1 if --check finds images that cannot be read, which are named; 2 if there is nothing to describe.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from rich.markup import escape
from rich.table import Table

from pfedmma.config import schema as configuration
from pfedmma.config.arguments import parser_with_settings
from pfedmma.config.schema import Config
from pfedmma.data.loading import divide, open_source, say
from pfedmma.data.partition import partition_file
from pfedmma.data.partition.federated import FederatedData
from pfedmma.data.sources.base import Source, Unreadable
from pfedmma.system import plots
from pfedmma.system.console import ProgressBar, show
from pfedmma.system.errors import run_main

DRAWN_SIZE = 32  # pixels a side of drawn images; describing draws none


def main(argv: list[str] | None = None) -> None:
    """The command; ``argv`` as on the command line."""
    parser = parser_with_settings("describe", __doc__, "data.clients=20")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="write classes x clients as a picture (*.png; needs pip install 'pfedmma[plots]')"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the partition as JSON, for data.partition_file")
    parser.add_argument("--check", action="store_true", help="decode every image of the data set, and name those that cannot be read")
    args = parser.parse_intermixed_args(argv)  # settings may stand before and after options
    config = configuration.load(args.config, args.settings)
    source = open_source(config.data, config.seed, DRAWN_SIZE)
    say(source)
    federated = divide(source, config.data, config.seed, config.evaluation.split)
    show(describe(federated, config))
    if args.out is not None:
        partition_file.write(args.out, federated, source)
        print(f"partition: {args.out}")
    if args.plot is not None:
        plot(federated, config, args.plot)
        print(f"plot: {args.plot}")
    if args.check and check(source):
        raise SystemExit(1)


def check(source: Source) -> int:
    """Decode every image; each that cannot be is named on stderr, and at the end they are counted."""
    count = sum(len(split.labels) for split in source.splits.values())
    bad = 0
    with ProgressBar("images", count) as bar:
        for wrong in _problems(source):
            if wrong:
                bar.complain(f"error: {wrong}")
                bad += 1
            bar.advance()
    print(f"checked: {count} images, {bad} of which cannot be read")
    sys.stdout.flush()
    return bad


def _problems(source: Source) -> Iterator[str]:
    """Why each image cannot be read, empty where it can be; several are decoded side by side, and none is kept."""

    def problem(item: tuple[str, int]) -> str:
        split, position = item
        try:
            source.splits[split].read(position)
        except Unreadable as error:
            return str(error)
        return ""

    items = [(name, position) for name, split in source.splits.items() for position in range(len(split.labels))]
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="pfedmma-decode") as threads:
        yield from threads.map(problem, items)


def counts(federated: FederatedData) -> torch.Tensor:
    """Training images of each base class at each client [classes, clients]."""
    classes = len(federated.base.classes)
    return torch.stack([torch.bincount(client.labels, minlength=classes) for client in federated.clients], dim=1)


def describe(federated: FederatedData, config: Config) -> Table:
    """One row a client: how much it holds, and of what most."""
    table = Table(title=escape(f"{_origin(config)}, seed {config.seed}: {_sizes(federated)}"))
    for name in ("client", "domain", "classes", "train", "test"):
        table.add_column(name, justify="right")
    table.add_column("most of")
    for client, held in zip(federated.clients, counts(federated).T, strict=True):
        top = held.argsort(descending=True, stable=True)[:4]
        most = ", ".join(f"{federated.base.classes[i]} {held[i]}" for i in top.tolist() if held[i])
        sizes = (str(len(part)) for part in (client.classes, client.train, client.test))
        name = f"{client.id} (new)" if client.new else str(client.id)
        table.add_row(name, escape(client.domain or "-"), *sizes, escape(most))  # a folder may be called "[b]"
    return table


def _origin(config: Config) -> str:
    return f"{config.data.name}, {config.data.partition_file or config.data.protocol}"


def _sizes(federated: FederatedData) -> str:
    return ", ".join(f"{name} {len(images.classes)} classes / {len(images.indices)} images" for name, images in federated.sets().items())


def plot(federated: FederatedData, config: Config, path: Path) -> None:
    """Write classes x clients as a picture; darker is more training images.

    Raises:
        UserError: matplotlib is not there, or ``path`` cannot be written.
    """
    held = counts(federated)
    figure = plots.new_figure(max(4.0, 0.25 * held.shape[1] + 2.0), max(3.0, 0.12 * held.shape[0] + 1.5))
    axes = figure.subplots()
    image = axes.imshow(held.numpy(), aspect="auto", cmap="Blues", interpolation="nearest")
    figure.colorbar(image, label="training images")
    axes.set_xlabel("client")
    axes.set_ylabel("class")
    if held.shape[0] <= 40:
        axes.set_yticks(range(held.shape[0]), federated.base.classes, fontsize=6, parse_math=False)
    axes.set_title(_origin(config), fontsize=9, parse_math=False)
    plots.save(figure, path)


if __name__ == "__main__":
    run_main(main)
