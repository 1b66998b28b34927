"""Arguments that several commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from pfedmma.system.arguments import counts, one_of, positive, positives
from pfedmma.system.errors import ArgumentParser, UserError


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_what_is_no_whole_number_from_1_on_is_named(text: str) -> None:
    parser = ArgumentParser(prog="program")
    parser.add_argument("--jobs", type=positive)
    assert parser.parse_args(["--jobs", "12"]).jobs == 12
    with pytest.raises(UserError, match=f"--jobs: '{text}' is no whole number from 1 on"):
        parser.parse_args([f"--jobs={text}"])


def test_lists_have_each_item_once() -> None:
    assert positives("1, 2,8,2") == [1, 2, 8] and one_of(["a", "b"])("b,a, b") == ["b", "a"]
    assert counts("8448,1e6,1.5e3") == [8448, 1_000_000, 1500]


def test_help_fills_the_terminal_paragraph_by_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of a docstring are longer than most terminals: they are broken anew, and not one after another."""
    monkeypatch.setenv("COLUMNS", "60")
    text = f"{'many words ' * 11}\n{'more words ' * 11}\n\n    program --with this | as it stands {'.' * 40}"
    about = f"Do it: ``program X``.\n\n{text}\n\nexit status: 0."
    text = ArgumentParser(prog="program", description=about, epilog="the end").format_help()
    parts = text.split("\n\n")
    assert parts[1] == "Do it: `program X`." and parts[3].startswith("    program --with this | as") and parts[4] == "exit status: 0."
    lines = parts[2].splitlines()
    assert " ".join(lines) == ("many words " * 11 + "more words " * 11).strip() and all(40 < len(line) <= 60 for line in lines[:-1])


@pytest.mark.parametrize(
    ("kind", "text"), [(positives, "1,x"), (positives, "1,,2"), (counts, "0e3"), (counts, "1e6x"), (one_of(["a"]), "a,b")]
)
def test_what_is_no_list_is_named(kind: Callable[[str], list], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        kind(text)
