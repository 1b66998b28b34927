"""Completion by the shell: on TAB it starts the program with a variable that asks what could stand next; argcomplete answers.

``eval "$(register-python-argcomplete pfedmma)"`` in bash or zsh asks for it; ``pip install "pfedmma[completion]"`` brings argcomplete.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

ASKED = "_ARGCOMPLETE"  # how many words come before the first that is completed: 1 for ``pfedmma``, 2 for ``pfedmma train``
Completer = Callable[..., Mapping[str, str]]  # of a beginning, given as ``prefix``: what could stand there -> what it means


def asked() -> bool:
    """Whether the shell asks; the program does nothing else then."""
    return ASKED in os.environ


def answer_if_asked(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, if it asks, with what ``parser`` takes, and end the program; without argcomplete it ends with nothing said."""
    if not asked():
        return
    try:
        import argcomplete
    except ModuleNotFoundError:
        sys.exit(1)
    argcomplete.autocomplete(parser, always_complete_options="long", exit_method=sys.exit)


def command_among(names: Collection[str]) -> str | None:
    """The command that stands whole before the word at the cursor, if it is one of ``names``; what comes after it is asked for then."""
    try:
        from argcomplete import split_line
    except ModuleNotFoundError:
        sys.exit(1)
    first = int(os.environ[ASKED])
    words = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]
    if len(words) <= first or words[first] not in names:
        return None
    os.environ[ASKED] = str(first + 1)
    return words[first]


def completed_by(action: Any, completer: Completer) -> None:
    """Say how an argument's values are completed."""
    action.completer = completer


def files(prefix: str, endings: Collection[str]) -> dict[str, str]:
    """Files with one of ``endings``, and folders, of a completer."""
    from argcomplete.completers import FilesCompleter

    return dict.fromkeys(FilesCompleter(endings)(prefix), "")
