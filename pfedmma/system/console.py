"""What a person sees: numbers for reading, a progress bar, tables, plain lines where there is no terminal."""

from __future__ import annotations

import datetime
import re
import sys
import textwrap
import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

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
        return f"{count / 1e6:,.3f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 0:03:20."""
    return str(datetime.timedelta(seconds=max(0, round(seconds))))


def time_stamp() -> str:
    """The time now, with its zone, as 2026-01-31T13:45:00+01:00."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def warn(text: str) -> None:
    """A line on stderr about what a person should know and what does not end the program."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line on stdout about what the program does."""
    print(text, flush=True)


def unsaid(text: str) -> None:
    """In place of `say`, where another rank says it."""


NAME = 24  # a name of so many characters is not broken


def show(table: Table, width: int = 100) -> None:
    """Print a table: at a terminal as much of it as has room, elsewhere all of it, and text broken at ``width``."""
    at_terminal = sys.stdout.isatty()
    width = Console().width if at_terminal else max(width, _wide(table, [least for least, _ in _sizes(table)]))
    Console(width=width).print(fit(table, width))


def room(width: int = 100) -> int:
    """Characters in a line: of the terminal, or ``width`` where there is none."""
    return Console().width if sys.stdout.isatty() else width


def wrapped(text: str) -> str:
    """Broken between words at the width of the terminal; elsewhere as it is."""
    return textwrap.fill(text, Console().width, break_long_words=False, break_on_hyphens=False) if sys.stdout.isatty() else text


def table_of(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Table:
    """A table of plain texts. The first column is names, the others are numbers; a head may have several lines."""
    table = Table(title=escape(printable(title)), caption=escape(caption) or None, caption_justify="left")
    for number, name in enumerate(head):
        table.add_column(escape(printable(name)), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    return table


def table_that_fits(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], width: int, caption: str = "") -> Table:
    """As `table_of`, of at most ``width`` characters a line."""
    return fit(table_of(title, head, rows, caption), width)


def fit(table: Table, width: int) -> Table:
    """The table in lines of ``width`` characters in which no cell is cut.

    Heads, texts (columns at the left) and long names (the first column) are broken between words; where that is not enough the last
    columns are left out, and the caption names them. A number is in one piece, or not there.
    """
    sizes, columns = _sizes(table), table.columns
    kept = len(columns)
    while kept > 1 and _wide(table, [least for least, _ in sizes[:kept]]) > width:
        kept -= 1
    widths = [most for _, most in sizes[:kept]]
    while _wide(table, widths) > width and (broken := [i for i in range(kept) if widths[i] > sizes[i][0]]):
        widths[max(broken, key=lambda i: widths[i])] -= 1
    if kept == 1:
        widths = [max(1, min(widths[0], width - _wide(table, [0])))]
    left_out = [" ".join(Text.from_markup(str(column.header)).plain.split()) for column in columns[kept:]]
    table.columns = columns[:kept]
    for column, wide in zip(table.columns, widths, strict=True):
        column.width, column.no_wrap, column.overflow = wide, False, "fold"
    table.min_width = None if table.min_width is None else min(table.min_width, width)
    if left_out:
        table.caption = "\n".join(filter(None, [str(table.caption or ""), escape(f"no room for: {', '.join(left_out)}")]))
        table.caption_justify = "left"
    return table


def _wide(table: Table, widths: Sequence[int]) -> int:
    """Characters of a line of the table, with what stands between its columns."""
    return sum(widths) + 3 * len(widths) + 1


def _sizes(table: Table) -> list[tuple[int, int]]:
    """The least and the most characters of each column: with all breaks between words that may be made, and with none."""
    console = Console(width=10_000)

    def sizes(cell: object) -> Measurement:
        return Measurement.get(console, console.options, cell)  # type: ignore[arg-type]

    found = []
    for number, column in enumerate(table.columns):
        head, cells = sizes(column.header), [sizes(cell) for cell in column.cells] or [Measurement(0, 0)]
        word, line = max(cell.minimum for cell in cells), max(cell.maximum for cell in cells)
        if number == 0:
            line_at_least = min(line, max(word, NAME))
        else:
            line_at_least = line if column.justify == "right" or column.no_wrap else word
        found.append((max(head.minimum, line_at_least), max(head.maximum, line)))
    return found


class TimeLeft(TimeRemainingColumn):
    """What `ProgressBar.expect` said, counted down; without it, what follows from the things done so far."""

    def render(self, task: Task) -> Text:
        end = task.fields["end"]
        if end is None:
            return super().render(task)
        return Text(duration(end - time.monotonic()) + task.fields["more"], style="progress.remaining")


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
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # takes what the others leave
            MofNCompleteColumn(),
            TimeLeft(),
            TextColumn("{task.fields[state]}"),
            TextColumn("{task.fields[note]}"),
            console=console,
            expand=True,
            disable=not self.live,
            transient=beside_answers,
            redirect_stdout=self.at_terminal,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("", total=total, completed=done, state="", note="", end=None, more="")

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
        """One more is done, and nothing is said of the next."""
        self._progress.update(self._task, advance=1, state="")

    def state(self, text: str) -> None:
        """What is being done stands behind the bar."""
        self._progress.update(self._task, state=escape(text))

    def update(self, done: int, note: str) -> None:
        """So many are done by now; ``note`` stands at the end of the line until the next one."""
        self._progress.update(self._task, completed=done, note=escape(note))

    def expect(self, seconds: float | None, more: str = "") -> None:
        """The end is so many seconds away, in place of what the things done so far let expect; ``more`` stands behind this time."""
        self._progress.update(self._task, end=None if seconds is None else time.monotonic() + seconds, more=more)

    def expect_at_least(self, seconds: float) -> None:
        """Put the end off, if it is expected and less than so many seconds away."""
        end = self._progress.tasks[0].fields["end"]
        if end is not None:
            self._progress.update(self._task, end=max(end, time.monotonic() + seconds))
