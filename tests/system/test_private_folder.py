"""A folder for one run alone: nobody else reads it, and nothing of it outlives the next start."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pfedmma.system.errors import RankFailure
from pfedmma.system.private_folder import new_private_folder
from tests.support.holders import holder, kill

NAME, OTHER = f"pfedmma-{'0a' * 16}", f"pfedmma-{'1b' * 16}"
HOLD = """
import sys
from pathlib import Path
from pfedmma.system.private_folder import new_private_folder
with new_private_folder(Path(sys.argv[1]), "test images"):
    (Path(sys.argv[1]) / "test").write_bytes(b"pixels")
"""


def test_it_is_its_owners_alone_and_gone_at_the_end(tmp_path: Path):
    with new_private_folder(tmp_path / NAME, "test images"):
        assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o700
        (tmp_path / NAME / "test").touch()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), new_private_folder(tmp_path / NAME, "test images"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_not_taken(tmp_path: Path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "poison").touch()
    os.utime(tmp_path / NAME)
    (tmp_path / NAME / "in use").symlink_to("/dev/null")
    with pytest.raises(RankFailure, match="cannot keep test images"), new_private_folder(tmp_path / NAME, "test images"):
        pass
    assert sorted(path.name for path in (tmp_path / NAME).iterdir()) == ["in use", "poison"]


def test_that_of_a_killed_process_is_removed_at_the_next_start_and_no_other(tmp_path: Path):
    dead, living = holder(HOLD, tmp_path / NAME), holder(HOLD, tmp_path / OTHER)
    try:
        kill(dead)
        mine = ["pfedmma-notes", "pfedmma-123-test.pixels", "other"]
        for name in mine:
            (tmp_path / name).mkdir()
        (tmp_path / f".pfedmma-{'2c' * 16}").mkdir()  # a draft, as another process has it for a moment
        old = tmp_path / f".pfedmma-{'3d' * 16}"  # and one that nobody finishes
        old.mkdir()
        os.utime(old, (time.time() - 3600,) * 2)
        assert (tmp_path / NAME / "test").exists()
        with new_private_folder(tmp_path / f"pfedmma-{'4e' * 16}", "test images"):
            left = sorted(path.name for path in tmp_path.iterdir())
            assert left == sorted([*mine, OTHER, f"pfedmma-{'4e' * 16}", f".pfedmma-{'2c' * 16}"])
        assert (tmp_path / OTHER / "test").read_bytes() == b"pixels"
    finally:
        kill(living)
