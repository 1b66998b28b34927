"""LaTeX that shows a run's own texts as they are, with any engine and without a package, and tables in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from pfedmma.system.console import printable

# Also what is special only at the beginning of a line of a table, after its two backslashes: [ and *.
_SPECIAL = {character: f"\\{character}" for character in "{}$&%#_"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    "`": "{`}",  # two of them, or one after ? or !, would become one sign
    "'": "{'}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
}
# By the combining character that Unicode has for each.
_ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0308\u0304\u0306\u0307\u030a\u030b\u030c\u0327", list("`'^~\"=u.rHvc"), strict=True))


def escape(text: str) -> str:
    """Text that LaTeX shows as it is, in ASCII and on one line; a character that it has no command for becomes its number, U+4E2D."""
    return re.sub("-(?=-)", "-{}", "".join(map(_escaped, " ".join(printable(text).split()))))  # two would become a dash


def _escaped(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character.isascii():
        return character
    letter, *marks = list(unicodedata.normalize("NFD", character))
    if letter.isascii() and letter.isalpha() and len(marks) == 1 and marks[0] in _ACCENTS:
        return f"\\{_ACCENTS[marks[0]]}{{{letter}}}"
    return f"U+{ord(character):04X}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a plain ``tabular``; the texts are escaped here. The first column stands to the left, the others to the right."""
    begin = rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}"
    return [begin, r"\hline", _row(columns), r"\hline", *map(_row, rows), r"\hline", r"\end{tabular}"]


def _row(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(escape, cells))} \\\\"
