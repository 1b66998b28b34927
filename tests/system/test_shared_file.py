"""A file that processes map: what one writes all see, nobody else can read it or put another in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pfedmma.system.errors import RankFailure
from pfedmma.system.shared_file import SharedFile, create_shared_file


def test_what_one_writes_the_other_sees(tmp_path: Path) -> None:
    create_shared_file(tmp_path / "shared", 16, 3, "numbers")
    one, other = (SharedFile(tmp_path / "shared", 16, 3, "numbers") for _ in range(2))
    (tmp_path / "shared").unlink()  # both have it mapped: nothing is left behind
    assert not one.content.any() and not one.marks.any() and (len(one.content), len(one.marks)) == (16, 3)
    one.write(4, torch.tensor([1.5, -2.0]))
    other.marks[2] = 7
    assert other.content.view(torch.float32).tolist() == [0.0, 1.5, -2.0, 0.0]
    assert one.marks.tolist() == [0, 0, 7]


def test_it_takes_room_only_as_content_is_written(tmp_path: Path) -> None:
    create_shared_file(tmp_path / "shared", 1 << 40, 8, "numbers")
    status = (tmp_path / "shared").stat()
    assert status.st_size == (1 << 40) + 8 and 512 * status.st_blocks < 1 << 20


def test_it_is_new_and_its_owners_alone(tmp_path: Path) -> None:
    create_shared_file(tmp_path / "shared", 6, 8, "numbers")
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o600
    with pytest.raises(RankFailure, match=r"cannot keep numbers in .* \(File exists\); set TMPDIR to a folder with more room"):
        create_shared_file(tmp_path / "shared", 6, 8, "numbers")
    (tmp_path / "victim").write_bytes(b"precious")
    for target in ("victim", "absent"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / target)
        with pytest.raises(RankFailure):
            create_shared_file(tmp_path / "link", 6, 8, "numbers")
        with pytest.raises(RankFailure):
            SharedFile(tmp_path / "link", 6, 8, "numbers")
    assert (tmp_path / "victim").read_bytes() == b"precious" and not (tmp_path / "absent").exists()
