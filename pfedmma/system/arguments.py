"""Kinds of arguments that several commands take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection

_POWER = re.compile(r"\d+(\.\d+)?e\d{1,2}", re.ASCII)


class Paragraphs(argparse.HelpFormatter):
    """Help whose description is a module's docstring: each paragraph fills the width of the terminal; indented ones stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        parts = re.split(r"\n\s*\n", text.strip("\n").replace("``", "`"))
        return "\n\n".join(part if re.search(r"^\s", part, re.MULTILINE) else fill(part, width, indent) for part in parts)


def positive(text: str) -> int:
    """A whole number from 1 on; an argparse ``type``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)


def positives(text: str) -> list[int]:
    """A list such as 1,2,8, each once; an argparse ``type``."""
    return list(dict.fromkeys(positive(word.strip()) for word in text.split(",")))


def counts(text: str) -> list[int]:
    """As `positives`; 1e6 is a million."""
    return positives(",".join(f"{float(word):.0f}" if _POWER.fullmatch(word.strip()) else word for word in text.split(",")))


def one_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """An argparse ``type``: a list of ``known`` words such as fp32,bf16, each once."""

    def words(text: str) -> list[str]:
        found = list(dict.fromkeys(word.strip() for word in text.split(",")))
        for word in found:
            if word not in known:
                raise argparse.ArgumentTypeError(f"'{word}' is none of {', '.join(known)}")
        return found

    return words
