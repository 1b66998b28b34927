"""Markdown that shows a run's own texts as they are, and tables in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from pfedmma.system.console import printable


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no end of a cell."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", _one_line(text)).replace("&", "&amp;").replace("<", "&lt;")


def code(text: str) -> str:
    """Text in the letters of code, fit for a cell of a table."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " * bool(longest)
    return f"{fence}{space}{_one_line(text)}{space}{fence}".replace("|", r"\|")


def bold(markdown: str) -> str:
    return f"**{markdown}**"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[int] = ()) -> list[str]:
    """The lines of a table. Its cells are Markdown; numbers stand to the right, but in the first column and in ``words``."""
    rule = "".join("---|" if i == 0 or i in words else "---:|" for i in range(len(columns)))
    return [_row(columns), f"|{rule}", *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())
