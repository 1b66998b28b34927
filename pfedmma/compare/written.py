"""The tables of a comparison as they are written: at the terminal, as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from pfedmma.compare.done import Done, columns
from pfedmma.compare.selection import Choice
from pfedmma.compare.table import NOTE, Sheet, parts
from pfedmma.config.identity import settings
from pfedmma.records.columns import DOWN, DOWN_OF_RUN, SECONDS, TRAINED, UP, UP_OF_RUN, percent
from pfedmma.system import latex as tex
from pfedmma.system import markdown as md
from pfedmma.system.console import table_of
from pfedmma.system.csv_text import as_csv


def terminal(sheet: Sheet) -> Table:
    return table_of(sheet.title, sheet.head, sheet.rows)


def markdown(sheets: Sequence[Sheet]) -> str:
    """All tables, each with its notes."""
    lines = []
    for sheet in sheets:
        whole = [[md.code(name), *map(md.escape, rest)] for name, *rest in sheet.rows]
        lines += [md.bold(md.escape(sheet.title)), "", *md.table(list(map(md.escape, sheet.head)), whole), ""]
        lines += [*(f"- {md.escape(note)}" for note in sheet.notes), ""]
    return "\n".join([*lines, NOTE, ""])


def latex(sheets: Sequence[Sheet]) -> str:
    """All tables, to be read by ``\\input``: plain ``tabular``, no package, ASCII alone."""
    lines = [f"% {tex.escape(NOTE)}"]
    for sheet in sheets:
        lines += ["", r"\begin{center}", rf"\textbf{{{tex.escape(sheet.title)}}}\\[1ex]"]
        lines += [*tex.table(sheet.head, sheet.rows), *(rf"\\{{\small {tex.escape(note)}}}" for note in sheet.notes), r"\end{center}"]
    return "\n".join([*lines, ""])


def table_csv(runs: Sequence[Done]) -> str:
    return as_csv(table_lines(runs))


def table_lines(runs: Sequence[Done]) -> list[list[Any]]:
    """Names of columns; one line for each part and method, and for what is published of it, which has no seeds."""
    named = columns(runs)
    lines: list[list[Any]] = [
        ["table", "method", "seeds"]
        + [percent(column, kind) for column in named for kind in ("mean", "std")]
        + [UP, DOWN, TRAINED, SECONDS]
    ]
    for part in parts(runs):
        for row in part.rows:
            values = [values.get(column) for column in named for values in (row.mean, row.std)]
            lines.append([part.title, row.method, row.seeds or None, *values, row.up, row.down, row.trained, row.seconds])
    return lines


def runs_csv(runs: Sequence[Done]) -> str:
    return as_csv(run_lines(runs))


def run_lines(runs: Sequence[Done]) -> list[list[Any]]:
    """Names of columns; one line for each run, in which each setting of the grid has a column of its own."""
    named = columns(runs)
    varied = list(dict.fromkeys(name for run in runs for name in run.plan.grid))
    head = ["method", "dataset", "shots", "combination", *varied, "seed", *map(percent, named)]
    lines: list[list[Any]] = [[*head, UP, DOWN, UP_OF_RUN, DOWN_OF_RUN, TRAINED, SECONDS, "run"]]
    for run in runs:
        plan, summary = run.plan, run.summary
        own = settings(plan.config)
        what = [
            plan.method,
            plan.dataset,
            plan.config.data.shots,
            plan.combination,
            *(_one_cell(own.get(name)) for name in varied),
            plan.config.seed,
        ]
        moved = [
            summary.bytes_per_client_round,
            summary.bytes_down_per_client_round,
            summary.comm.uplink_bytes,
            summary.comm.downlink_bytes,
        ]
        lines.append([*what, *map(run.score, named), *moved, summary.trained_parameters, run.seconds, plan.name])
    return lines


def _one_cell(value: Any) -> Any:
    """The value of a setting; a list as it is written in a combination."""
    return "+".join(map(str, value)) if isinstance(value, list) else value


def candidates_csv(choices: Sequence[Choice]) -> str:
    """One line for each candidate: its mean HM on the validation split, and whether it is the one that is run on the test split."""
    lines: list[list[Any]] = [["method", "setting", "combination", "seeds", percent("hm", "mean"), "chosen"]]
    for choice in choices:
        for candidate in choice.candidates:
            plan = candidate.plans[0]
            chosen = "yes" if candidate is choice.best else "no"
            lines.append([plan.method, plan.setting, plan.combination, len(candidate.plans), candidate.hm, chosen])
    return as_csv(lines)
