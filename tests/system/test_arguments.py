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


@pytest.mark.parametrize(
    ("kind", "text"), [(positives, "1,x"), (positives, "1,,2"), (counts, "0e3"), (counts, "1e6x"), (one_of(["a"]), "a,b")]
)
def test_what_is_no_list_is_named(kind: Callable[[str], list], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        kind(text)
