"""Report on runs: ``python -m pfedmma.report RUN [RUN ...] [--html FILE] [--markdown FILE] [--wire FILE]``.

A table at the terminal, and a page that opens in any browser: RUN/report.html for one run; for several, report.html in the folder that
holds them, or here if they lie in different ones.

exit status: 0; 2 if there is nothing to report.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pfedmma.records.rows import HEADLINE, TITLES, Accuracy
from pfedmma.report import accuracy, clients, costs, html, markdown, new_clients, privacy, setting
from pfedmma.report.document import Document
from pfedmma.report.runs import Report, minus, read_all, same_setting
from pfedmma.report.wire import Wire
from pfedmma.run.display import accuracy_table
from pfedmma.system.console import megabytes, percent, show
from pfedmma.system.errors import ArgumentParser, UserError
from pfedmma.system.files import write_atomically


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    runs = read_all(args.runs)
    wire = Wire.from_file(args.wire) if args.wire else None
    show_tables(runs)
    document = compose(runs, wire)
    if args.markdown:
        write(args.markdown, markdown.render(document))
    if not args.no_html:
        path = args.html or default_path(runs)
        write(path, html.render(document))
        print(f"report: {path}", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m pfedmma.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs; one that is still going on is shown as far as it is")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where to write the page")
    parser.add_argument("--no-html", action="store_true", help="write no page")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as Markdown")
    parser.add_argument("--wire", type=Path, metavar="FILE", help="result of benchmarks/wire.py: measured bytes beside the ring model")
    return parser.parse_args(argv)


def default_path(runs: Sequence[Report]) -> Path:
    """Where the page of these runs lies if nothing else is said."""
    if len(runs) == 1:
        return runs[0].path / "report.html"
    parents = {run.path.resolve().parent for run in runs}
    return (runs[0].path.parent if len(parents) == 1 else Path()) / "report.html"


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


def compose(runs: Sequence[Report], wire: Wire | None) -> Document:
    """The report of these runs."""
    datasets = {run.dataset for run in runs}
    about = f" on {runs[0].dataset}" if len(datasets) == 1 else ""
    sections = (
        setting.section(runs),
        accuracy.final(runs),
        accuracy.curves(runs),
        clients.section(runs),
        *new_clients.sections(runs),
        costs.communication(runs, wire),
        privacy.section(runs),
        costs.times(runs),
        setting.environment(runs),
    )
    return Document(f"{runs[0].method if len(runs) == 1 else f'{len(runs)} runs'}{about}", lead(runs), sections)


def lead(runs: Sequence[Report]) -> str:
    """The result in a sentence or two."""
    going = [run.label for run in runs if not run.finished]
    still = f" Still going on: {', '.join(going)}." if going else ""
    if len(runs) > 1:
        values = [f"{run.label} {percent(run.accuracy.score('hm'))}" for run in runs if run.accuracy]
        return (f"HM in percent: {', '.join(values)}." if values else "Nothing was evaluated.") + still
    run = runs[0]
    sent = "" if run.up is None else f" {run.up:,.0f} B up a client and round."
    if run.accuracy is None:
        return f"Not evaluated.{sent}{still}"
    known = [name for name in HEADLINE if run.accuracy.score(name) is not None]
    said = ", ".join(f"{TITLES[name]} {_beside(run.accuracy, run.zero_shot, name)}" for name in known)
    return f"{said}.{sent}{still}"


def _beside(result: Accuracy, zero_shot: Accuracy | None, name: str) -> str:
    gain = minus(result.score(name), zero_shot.score(name) if zero_shot else None)
    return percent(result.score(name)) + ("" if gain is None else f" ({gain:+.2f} over zero-shot)")
