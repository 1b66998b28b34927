"""Tables of all settings, made of what each says beside its field.

``python -m pfedmma.config.table [FILE]`` prints them in Markdown, or writes them anew between the two marks in FILE (configs/README.md).
"""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfedmma.config.schema import Config
from pfedmma.system.errors import ArgumentParser, UserError, run_main
from pfedmma.system.files import write_atomically
from pfedmma.system.options import ANOTHER_RUN, GOES_ON, OUTSIDE, SAME_RESULT, Described, described, fields_of, is_section

BEGIN, END = "<!-- settings: made by python -m pfedmma.config.table -->", "<!-- settings end -->"
WIDEST = 120  # characters of a line of help
ON_RESUME = {ANOTHER_RUN: "another run", GOES_ON: "may change", SAME_RESULT: "changes no result", OUTSIDE: "not compared"}


def main() -> None:
    """Print the tables, or put them into a file."""
    parser = ArgumentParser(
        prog="python -m pfedmma.config.table", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, help="a Markdown file with the two marks")
    file = parser.parse_args().file
    if file is None:
        print(markdown())
        return
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    write_atomically(file, replaced(text, file).encode())


def replaced(text: str, file: Path) -> str:
    """``text`` with today's tables between its marks.

    Raises:
        UserError: ``file`` has no marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{file} has no place for the tables; write '{BEGIN}' and '{END}' where they belong")
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{after}"


def markdown() -> str:
    """A table for each section, under a heading of its own."""
    return "\n\n".join("\n".join(_section(name, about, rows)) for name, about, rows in sections(Config) if rows)


def explained(wanted: str = "") -> str:
    """Settings by section, each with its default, and its meaning with unit and choices below: for ``--help``.

    Args:
        wanted: a section with those below it, such as "method.", or one setting; empty: all there are.

    Raises:
        UserError: there is neither a section nor a setting of that name.
    """
    name = wanted.removesuffix(".")
    found = [
        (section, about, own)
        for section, about, rows in sections(Config)
        if (own := [row for row in rows if name in ("", section, row.name) or section.startswith(f"{name}.")])
    ]
    if not found:
        known = [f"{section}." for section, _, rows in sections(Config) if section and rows]
        near = difflib.get_close_matches(name, [item.name for item in described(Config)], 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else f"the sections are {', '.join(known)}"
        raise UserError(f"--help: there is no section or setting '{wanted[:60]}'; {hint}")
    return "\n\n".join("\n".join(_paragraph(*part)) for part in found)


def _paragraph(section: str, about: str, rows: list[Described]) -> list[str]:
    width = min(shutil.get_terminal_size().columns, WIDEST)
    lines = textwrap.wrap(f"{section or 'top level'}: {about}", width)
    for row in rows:
        lines.append(f"  {row.name}={written(row.default)}")
        lines += textwrap.wrap(row.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def sections(cls: type, prefix: str = "") -> Iterator[tuple[str, str, list[Described]]]:
    """(name, what it is about, its own settings) of ``cls`` and of every section below it; ``cls`` itself has the name "" here."""
    own = [item for item in described(cls, prefix) if "." not in item.name.removeprefix(prefix)]
    yield prefix.removesuffix("."), (cls.__doc__ or "").partition("\n")[0], own
    for name, kind, _ in fields_of(cls):
        if is_section(kind):
            yield from sections(kind, f"{prefix}{name}.")


def written(value: Any) -> str:
    """A default as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _section(name: str, about: str, rows: list[Described]) -> list[str]:
    title = f"`{name}`" if name else "Top level"
    head = [f"### {title}", "", about, "", "| setting | default | meaning | on resume |", "|---|---|---|---|"]
    return head + [f"| `{row.name}` | {_code(row.default)} | {_text(row.meaning)} | {ON_RESUME[row.change]} |" for row in rows]


def _code(default: Any) -> str:
    return f"`{text}`" if (text := written(default)) else ""


def _text(meaning: str) -> str:
    """A meaning in a cell of a table, where "|" ends the cell and "<data>" is read as HTML."""
    return re.sub(r"\||<(?=\w)", r"\\\g<0>", meaning)


if __name__ == "__main__":
    run_main(main)
