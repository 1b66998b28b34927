# PYTHON_ARGCOMPLETE_OK
"""All commands under one name: ``pfedmma COMMAND ...`` does what ``python -m pfedmma.COMMAND ...`` does.

exit status: that of the command, see its --help; 2 if there is no such command.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import pkgutil
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from pfedmma.system import completion
from pfedmma.system.errors import UserError, run_main
from pfedmma.version import VERSION

USAGE = "usage: pfedmma COMMAND ...    the same as python -m pfedmma.COMMAND ...\n       pfedmma --version"
MORE = """pfedmma COMMAND --help explains one; pfedmma train --help data. some settings.
eval "$(register-python-argcomplete pfedmma)" completes by TAB (argcomplete)."""


def main() -> None:
    """Run the command that the first argument names; without one, list all."""
    if completion.asked():
        complete()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(listed(), flush=True)
    elif name == "--version":
        print(f"pfedmma {VERSION}", flush=True)
    else:
        start(module_of(name), rest)


def start(module: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def complete() -> NoReturn:
    """Answer the shell that asks what could stand next, and end: a command, or what the command that stands there takes."""
    known = dict(commands())
    if name := completion.command_among(known):
        start(module_of(name), [])
    parser = argparse.ArgumentParser(add_help=False)
    for option in ("--help", "--version"):
        parser.add_argument(option, action="store_true")
    completion.completed_by(parser.add_argument("command"), lambda **asked: known)
    completion.answer_if_asked(parser)
    sys.exit(1)


def script() -> None:
    """`main` for the shell's ``pfedmma``."""
    run_main(main)


def module_of(name: str) -> str:
    """The module of a command. Raises a `UserError` that names the nearest one, or all."""
    known = [command for command, _ in commands()]
    if name in known:
        return f"pfedmma.{name}"
    near = difflib.get_close_matches(name, known, 1, 0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"the commands are {', '.join(known)}"
    raise UserError(f"there is no command '{name[:60]}'; {hint}")


def listed() -> str:
    """What there is, a line each."""
    lines = [f"  {name:<10} {purpose}" for name, purpose in commands()]
    return "\n".join([USAGE, "", *lines, "", MORE])


def commands() -> Iterator[tuple[str, str]]:
    """Names and purposes of the modules whose first line says how they are run; none of them is imported."""
    here = Path(__file__).parent
    for info in pkgutil.iter_modules([str(here)]):
        said = _first_line(here / info.name / "__main__.py" if info.ispkg else here / f"{info.name}.py")
        purpose, how, _ = said.partition(f": ``python -m pfedmma.{info.name}")
        if how:
            yield info.name, purpose


def _first_line(file: Path) -> str:
    """Of a module's docstring; empty where there is no such file."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else ""
    return (text or "").partition("\n")[0]


if __name__ == "__main__":
    script()
