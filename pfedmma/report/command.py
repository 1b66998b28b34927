"""Report on runs: ``python -m pfedmma.report RUN [RUN ...] [--html FILE] [--markdown FILE] [--wire FILE]``.

A table at the terminal, and a page that opens in any browser: RUN/report.html for one run; for several, report.html in the folder that
holds them, or here if they lie in different ones. A folder of runs stands for all runs in it and below: its page leads to one for each of
them. Runs that differ in their seed alone are one line, with its mean and interval.

exit status: 0; 2 if there is nothing to report.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from pfedmma.records.folder import RunFolder
from pfedmma.records.rows import Accuracy
from pfedmma.report import as_html, markdown, setting
from pfedmma.report.page import compose
from pfedmma.report.runs import Report, folders_below, read_all, same_setting
from pfedmma.report.wire import Wire
from pfedmma.run.display import accuracy_table
from pfedmma.system.console import megabytes, show
from pfedmma.system.errors import ArgumentParser, UserError
from pfedmma.system.files import write_atomically


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    folders = [folder for given in args.runs for folder in expand(given)]
    runs = read_all(folders)
    wire = Wire.from_file(args.wire) if args.wire else None
    show_tables(runs)
    path = args.html or default_path(args.runs, runs)
    if len(folders) > len(args.runs) and not args.no_html:
        for run in runs:
            write(run.path / setting.PAGE, as_html.render(compose([run], None)))
    document = compose(runs, wire, path)
    if args.markdown:
        write(args.markdown, markdown.render(document))
    if not args.no_html:
        write(path, as_html.render(document))
        print(f"report: {path}", flush=True)


def expand(given: str) -> list[Path]:
    """The run in this folder, or else all runs below it.

    Raises:
        UserError: a folder with neither.
    """
    folder = RunFolder(given)
    found = [folder.path] if folder.holds_a_run else folders_below(folder.path)
    if not found and os.path.isdir(folder.path):
        raise UserError(f"{folder.path} holds no run, nor does a folder in it; give the run_dir of a run, or a folder of runs")
    return found or [folder.path]  # which the reader refuses


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m pfedmma.report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run, still going on or not, or a folder of runs")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where to write the page")
    parser.add_argument("--no-html", action="store_true", help="write no page")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")
    parser.add_argument("--wire", type=Path, metavar="FILE", help="result of benchmarks/wire.py: measured bytes beside the ring model")
    return parser.parse_args(argv)


def default_path(given: Sequence[str], runs: Sequence[Report]) -> Path:
    """Where the page of these runs, which were given so, lies if nothing else is said."""
    if len(given) == 1:
        return RunFolder(given[0]).path / setting.PAGE
    parents = {run.path.resolve().parent for run in runs}
    return (runs[0].path.parent if len(parents) == 1 else Path()) / setting.PAGE


def write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except UserError as error:
        raise UserError(f"{error}; --html and --markdown say where to write, --no-html writes no page") from None


def show_tables(runs: Sequence[Report]) -> None:
    """One table for each setting (data, protocol, backbone, seed): the zero-shot reference, then the runs."""
    for group in same_setting(runs):
        first = group[0]
        title = f"{first.dataset} {first.protocol}, {first.backbone}, seed {first.seed} (percent)"
        reference = next((run.zero_shot for run in group if run.zero_shot), None)
        rows: list[tuple[str, Accuracy | None, str]] = [("zeroshot", reference, "0 B")] if reference else []
        for run in group:
            if not run.is_reference or not reference:
                name = run.method if run.finished else f"{run.method}, {len(run.rounds)} rounds so far"
                rows.append((name, run.accuracy, "-" if run.up is None else megabytes(run.up)))
        show(accuracy_table(title, rows))
