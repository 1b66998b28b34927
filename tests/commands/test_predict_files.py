"""The files that predict takes: those that train takes, and nothing that is no image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from pfedmma.predict import find_images, given_names, parse
from pfedmma.system.errors import UserError


def test_folders_are_searched_as_a_data_set_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a/x.gif", "a/y", "a/b/z.JFIF", "a/__MACOSX/q.png", "a/@eaDir/x.gif/thumb.png", "a/.ipynb_checkpoints/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    (tmp_path / "a" / "w.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "a" / "v.txt").write_text("notes")
    os.mkfifo(tmp_path / "a" / "pipe")
    found = find_images([str(tmp_path / "a")])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/b/z.JFIF", "a/x.gif", "a/y"]
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("warning: left out: 3 of 6 files (") and str(tmp_path / "a" / "pipe") in told


def test_a_folder_without_an_image(tmp_path: Path):
    (tmp_path / "v.txt").write_text("notes")
    with pytest.raises(UserError, match=r"there is no image in the folder .*looked for .*\.png"):
        find_images([str(tmp_path)])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_in_a_file_with_a_byte_order_mark(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "names").write_text("Käse\nBrot\n", encoding=encoding)
    monkeypatch.setenv("HERE", str(tmp_path))
    for path in (str(tmp_path / "names"), "$HERE/names"):
        assert given_names(parse(["run", "x.png", "--client", "0", "--names-file", path])) == ("Käse", "Brot")
