"""Compare finished runs: ``python -m pfedmma.report RUN [RUN ...] [--markdown FILE]``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfedmma.console import accuracy_table, megabytes, percent, show
from pfedmma.errors import ArgumentParser, run_main
from pfedmma.files import write_atomically
from pfedmma.runfolder import RunFolder

Row = tuple[str, dict[str, Any] | None, str]


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m pfedmma.report", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    args = parser.parse_args(argv)
    summaries = [RunFolder(path).read_summary() for path in args.runs]
    for title, rows in groups(summaries):
        show(accuracy_table(title, rows))
    if args.markdown is not None:
        write_atomically(args.markdown, markdown(summaries).encode())


def groups(summaries: Sequence[dict[str, Any]]) -> list[tuple[str, list[Row]]]:
    """One table for each setting (data, protocol, backbone, seed): the zero-shot reference, then the runs."""
    tables: dict[tuple, list[Row]] = {}
    for summary in summaries:
        setting = tuple(summary[key] for key in ("dataset", "protocol", "backbone", "seed"))
        rows = tables.setdefault(setting, [])
        if not rows and summary["zero_shot"] is not None:
            rows.append(("zeroshot", summary["zero_shot"], "0 B"))
        if summary["method"] != "zeroshot":
            rows.append((summary["method"], summary["accuracy"], megabytes(summary["bytes_per_client_round"])))
    return [(f"{data} {protocol}, {backbone}, seed {seed} (percent)", rows) for (data, protocol, backbone, seed), rows in tables.items()]


def markdown(summaries: Sequence[dict[str, Any]]) -> str:
    """The same tables as Markdown."""
    lines = []
    for title, rows in groups(summaries):
        lines += [f"**{title}**", "", "| method | Local | Base | Novel | HM | up / client / round |", "|---|---:|---:|---:|---:|---:|"]
        for name, accuracy, moved in rows:
            cells = " | ".join(percent((accuracy or {}).get(key)) for key in ("local", "base", "novel", "hm"))
            lines.append(f"| `{name}` | {cells} | {moved} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
