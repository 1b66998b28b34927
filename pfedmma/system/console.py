"""What a person sees: progress, plain lines when not at a terminal, and tables. Rank 0 only."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def megabytes(count: float) -> str:
    """Bytes as a person reads them; a megabyte is 10^6 bytes."""
    if count >= 1e6:
        return f"{count / 1e6:.3f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count:.0f} B"


class Progression:
    """Progress of a run's rounds. A context manager; silent on ranks other than 0."""

    def __init__(self, rounds: int, done: int, enabled: bool) -> None:
        self.rounds, self.enabled = rounds, enabled
        self.live = enabled and sys.stdout.isatty()
        self.progress = Progress(
            TextColumn("round"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            disable=not self.live,
        )
        self.task = self.progress.add_task("", total=rounds, completed=done, state="")

    def __enter__(self) -> Progression:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        if self.enabled:
            self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def round_done(self, row: dict[str, Any]) -> None:
        """Show a finished round: in place at a terminal, with a line where it was evaluated or the output is a file."""
        state = f"loss {row['loss']:.4f}"
        self.progress.update(self.task, completed=row["round"], state=state)
        accuracy = row["accuracy"]
        if accuracy is not None:
            state += "  " + "  ".join(f"{name} {percent(accuracy[name])}" for name in ("local", "base", "novel", "hm"))
        if accuracy is not None or not self.live:
            self.say(f"round {row['round']}/{self.rounds}  {state}  {row['seconds']['total']:.2f} s")


def accuracy_table(title: str, rows: Sequence[tuple[str, dict[str, Any] | None, str]]) -> Table:
    """Rows of (name, accuracy or None, bytes up per client and round)."""
    table = Table(title=title)
    table.add_column("method")
    for name in ("Local", "Base", "Novel", "HM"):
        table.add_column(name, justify="right")
    table.add_column("up / client / round", justify="right")
    for name, accuracy, moved in rows:
        cells = [percent((accuracy or {}).get(key)) for key in ("local", "base", "novel", "hm")]
        table.add_row(name, *cells, moved)
    return table


def show(table: Table, width: int = 100) -> None:
    """Print a table, at a fixed ``width`` where there is no terminal to ask."""
    Console(width=None if sys.stdout.isatty() else width).print(table)


class Bar:
    """Where answers go, and a progress bar for many images at a terminal. A context manager."""

    def __init__(self, count: int, many: bool) -> None:
        self.shown = sys.stdout.isatty()  # answers and the bar share the terminal
        console = Console(stderr=not self.shown)
        columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.progress = Progress(
            *columns,
            console=console,
            disable=not (many and console.is_terminal),
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),
            transient=True,
        )
        self.task = self.progress.add_task("", total=count)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        if self.shown:
            self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def complain(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def advance(self) -> None:
        self.progress.advance(self.task)
