"""Arguments that several commands take."""

from __future__ import annotations

import pytest

from pfedmma.system.arguments import positive
from pfedmma.system.errors import ArgumentParser, UserError


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_what_is_no_whole_number_from_1_on_is_named(text: str) -> None:
    parser = ArgumentParser(prog="program")
    parser.add_argument("--jobs", type=positive)
    assert parser.parse_args(["--jobs", "12"]).jobs == 12
    with pytest.raises(UserError, match=f"--jobs: '{text}' is no whole number from 1 on"):
        parser.parse_args([f"--jobs={text}"])
