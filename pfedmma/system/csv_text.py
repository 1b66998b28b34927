"""Lines of values as the text of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any


def as_csv(lines: Sequence[Sequence[Any]]) -> str:
    """The lines as they stand in a file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(map(_cell, line)) for line in lines])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe, which it hides."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
