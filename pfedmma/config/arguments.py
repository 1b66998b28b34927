"""What commands share that take settings: ``--config FILE``, ``key=value``, and help about one section of settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from pfedmma.config import completers
from pfedmma.config.table import explained
from pfedmma.system.completion import completed_by
from pfedmma.system.errors import ArgumentParser

ABOUT_SECTIONS = "settings: --help SECTION. explains those of a section, for example --help data."


class Help(argparse.Action):
    """``--help``, or ``--help method.`` for one section of settings, or one setting."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: str | Sequence[Any] | None, option: str | None = None
    ) -> NoReturn:
        if values is None:
            parser.print_help()
        else:
            print(explained(str(values)))
        parser.exit()


def parser_with_help(name: str, about: str | None, epilog: str = ABOUT_SECTIONS) -> ArgumentParser:
    """The parser of the command ``name``, whose docstring is ``about``; its help explains settings, too."""
    parser = ArgumentParser(
        prog=f"python -m pfedmma.{name}",
        description=about,
        epilog=epilog,
        add_help=False,
    )
    what = "show this, or with a SECTION such as data. its settings alone, and end"
    parser.add_argument(
        "-h", "--help", action=Help, nargs="?", default=argparse.SUPPRESS, dest=argparse.SUPPRESS, metavar="SECTION", help=what
    )
    return parser


def parser_with_settings(name: str, about: str | None, example: str, epilog: str = ABOUT_SECTIONS) -> ArgumentParser:
    """The parser of a command that takes settings; its arguments are to be parsed intermixed, since settings may stand anywhere.

    Args:
        name: of the command. about: its docstring. example: of settings.
    """
    parser = parser_with_help(name, about, epilog)
    order = "a YAML file, or the name of one of the package such as demo; a later one takes precedence, and key=value over all"
    files = parser.add_argument("--config", action="append", default=[], metavar="FILE", help=order)
    completed_by(files, completers.config_files)
    completed_by(parser.add_argument("settings", nargs="*", metavar="key=value", help=f"for example {example}"), completers.settings)
    return parser
