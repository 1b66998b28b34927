"""What a person sees: numbers for reading, a progress bar, tables, plain lines where there is no terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# What no terminal should be sent, and no page may hold: control characters and halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with a replacement character for each that cannot be shown."""
    return _UNPRINTABLE.sub("\ufffd", text)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def megabytes(count: float) -> str:
    """Bytes as a person reads them; a megabyte is 10^6 bytes."""
    if count >= 1e6:
        return f"{count / 1e6:.3f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count:.0f} B"


def warn(text: str) -> None:
    """A line on stderr about what a person should know and what does not end the program."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line on stdout about what the program does."""
    print(text, flush=True)


def unsaid(text: str) -> None:
    """In place of `say`, where another rank says it."""


def show(table: Table, width: int = 100) -> None:
    """Print a table, at a fixed ``width`` where there is no terminal to ask."""
    Console(width=None if sys.stdout.isatty() else width).print(table)


def room(width: int = 100) -> int:
    """Characters in a line: of the terminal, or ``width`` where there is none."""
    return Console().width if sys.stdout.isatty() else width


def table_that_fits(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], width: int, caption: str = "") -> Table:
    """A table in which no cell is cut: the last columns are left out until the rest fit into ``width``, and the caption names them.

    The first column is names; a head may have several lines.
    """
    wide = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in zip(head, *rows, strict=True)]
    kept = len(head)
    while kept > 1 and sum(wide[:kept]) + 3 * kept + 1 > width:
        kept -= 1
    left_out = ", ".join(" ".join(name.split()) for name in head[kept:])
    said = [text for text in (caption, left_out and f"no room for: {left_out}") if text]
    table = Table(title=escape(printable(title)), caption=escape("\n".join(said)) or None, caption_justify="left")
    for number, name in enumerate(head[:kept]):
        table.add_column(escape(printable(name)), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row[:kept]))
    return table


class ProgressBar:
    """A progress bar of ``total`` things, and lines that do not break it. A context manager.

    The bar is there at a terminal only. ``silent``: neither bar nor lines, for ranks other than 0. ``bar=False``: lines alone.
    ``beside_answers``: the lines are a program's answers, so the bar goes to stderr where stdout is no terminal, and is gone at the end.
    """

    def __init__(
        self, unit: str, total: int, done: int = 0, *, silent: bool = False, bar: bool = True, beside_answers: bool = False
    ) -> None:
        self.total, self.silent = total, silent
        self.at_terminal = sys.stdout.isatty()
        console = Console(stderr=beside_answers and not self.at_terminal)
        self.live = bar and not silent and (console.is_terminal if beside_answers else self.at_terminal)
        self._progress = Progress(
            TextColumn(unit),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not self.live,
            transient=beside_answers,
            redirect_stdout=self.at_terminal,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("", total=total, completed=done, state="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line on stdout."""
        if self.silent:
            return
        if self.at_terminal:  # lines and the bar share it
            self._progress.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def complain(self, text: str) -> None:
        """A line on stderr."""
        if not self.silent:
            print(text, file=sys.stderr, flush=True)

    def advance(self) -> None:
        """One more is done."""
        self._progress.advance(self._task)

    def state(self, text: str) -> None:
        """What is being done stands behind the bar."""
        self._progress.update(self._task, state=text)

    def update(self, done: int, state: str) -> None:
        """So many are done by now; ``state`` stands behind the bar."""
        self._progress.update(self._task, completed=done, state=state)
