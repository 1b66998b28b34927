"""Which columns of CSV files the page of settings explains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "configs" / "README.md"


def unexplained(names: Iterable[str]) -> set[str]:
    """Those of ``names`` that are in no row of the table; a word in capitals stands there for any other."""
    table = PAGE.read_text(encoding="utf-8").partition("### Columns of the CSV files")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    known = [re.sub("[A-Z]+", ".+", re.escape(name)) for row in rows for name in re.findall(r"`([^`]+)`", row)]
    return {name for name in names if not any(re.fullmatch(pattern, name) for pattern in known)}
