"""What a run costs, before it runs: ``python -m pfedmma.cost [--methods all|a,b] [--backbone NAME] [--config FILE] [key=value ...]``

Says of every method what is trained and exchanged, the bytes of a client and round and of the whole run, the time that takes over given
links, the bytes of each rank of a ring, and the operations and memory of a local step; apart from these, the delivery of the frozen
backbone. Needs neither weights nor data. Bytes and operations are counted, times and ring bytes modelled: no latency, nothing lost.

exit status: 0; 2 if there is nothing to say.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pfedmma.comm.world import WIRE_DTYPES
from pfedmma.config import schema as configuration
from pfedmma.config.arguments import parser_with_settings
from pfedmma.config.schema import Config
from pfedmma.cost.links import DEFAULT, links
from pfedmma.methods import registry
from pfedmma.system.arguments import one_of, positive, positives
from pfedmma.system.console import room, show, wrapped
from pfedmma.system.errors import UserError, run_main
from pfedmma.system.files import write_atomically

ALL = "all"


def main(argv: list[str] | None = None) -> None:
    """The command; ``argv`` as on the command line."""
    args = parse(argv)
    given = [*args.settings, *([f"backbone.name={args.backbone}"] if args.backbone else ())]
    base = configuration.load(args.config, given)
    configs = [_with_method(args.config, given, name) for name in chosen(args.methods)]
    found = links(args.links)

    from pfedmma.cost import lines, shown  # what runs a step takes longer to import than help takes

    classes = 0 if args.no_step else args.classes
    sweep = lines.Sweep(args.wire or [base.distributed.wire], args.clients or [base.data.clients], args.ranks, found, classes)
    table = lines.lines(configs, sweep, leave_out=args.methods == ALL)
    for each in shown.tables(table, room()):
        show(each)
    print(wrapped(shown.delivery(table[0])))
    if args.csv is not None:
        write_atomically(args.csv, shown.csv(table).encode())
        print(f"csv: {args.csv}")
    if args.plot is not None:
        plot(table, args.plot)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_with_settings("cost", __doc__, "federation.rounds=10 data.clients=100")
    parser.add_argument("--methods", default=ALL, help="a list such as pfedmma,promptfl; default all: those of this package and of plugins")
    parser.add_argument("--backbone", metavar="NAME", help="short for backbone.name=NAME, for example ViT-B-16")
    parser.add_argument("--ranks", type=positives, default=[1, 2, 8], help="numbers of ranks; default 1,2,8")
    parser.add_argument("--wire", type=one_of(WIRE_DTYPES), help=f"dtypes of {', '.join(WIRE_DTYPES)}; default distributed.wire")
    parser.add_argument("--clients", type=positives, help="numbers of clients; default data.clients")
    parser.add_argument("--links", default=DEFAULT, help=f"NAME=RATE or NAME=UP/DOWN, bits a second; default {DEFAULT}")
    parser.add_argument("--classes", type=positive, default=51, help="classes of a local step's prompts; default 51, as Caltech101's base")
    parser.add_argument("--no-step", action="store_true", help="leave the local step out, which takes half a second a method")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each method, wire, number of clients and of ranks")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw bytes a round by method (*.png, *.pdf; needs 'pfedmma[plots]')")
    return parser.parse_intermixed_args(argv)


def chosen(methods: str) -> list[str]:
    """The methods of ``--methods``, by name. Plugins are imported by now. Raises a `UserError` that names all there are."""
    if methods == ALL:
        return [*registry.BUILT_IN, *registry.REGISTERED]
    names = list(dict.fromkeys(word.strip() for word in methods.split(",") if word.strip()))
    if not names:
        raise UserError(f"--methods: a list such as pfedmma,promptfl is expected, or {ALL}")
    for name in names:
        try:
            registry.entry_of(name)
        except UserError as error:
            raise UserError(f"--methods: {error}") from None
    return names


def _with_method(files: Sequence[str], given: Sequence[str], name: str) -> Config:
    """The settings of a run of this method, with its own optimizer where nothing else is said."""
    try:
        return configuration.load(files, [*given, f"method.name={name}"])
    except UserError as error:
        raise UserError(f"{error} (of method {name}; --methods chooses others)") from None


def plot(table: Sequence, path: Path) -> None:
    """Draw the figure; a `UserError` where that cannot be done."""
    from pfedmma.cost.figure import draw
    from pfedmma.system.plots import save

    save(draw(table), path)
    print(f"plot: {path}")


if __name__ == "__main__":
    run_main(main)
