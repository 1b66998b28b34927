"""Paths as people write them, and text in any encoding that says its name."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from pfedmma.system.files import expanded, read_text


def test_what_stands_for_something_is_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("ABSENT", raising=False)
    assert expanded("~/p.json") == tmp_path / "p.json"
    assert expanded("$DATA/p.json") == expanded("${DATA}/p.json") == Path("/data/p.json")
    for text in ("$ABSENT/p.json", "~no-such-user-here/p", "p.json", "a b#c%d", ""):
        assert expanded(text) == Path(text)


def test_a_file_that_is_there_under_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATA", "/data")
    (tmp_path / "$DATA").touch()
    assert expanded(tmp_path / "$DATA") == tmp_path / "$DATA"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),  # as PowerShell's ">" writes it
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_names_the_encoding(tmp_path: Path, mark: bytes, encoding: str):
    (tmp_path / "x").write_bytes(mark + "Käse\r\nBrot\n".encode(encoding))
    assert read_text(tmp_path / "x") == "Käse\nBrot\n"


def test_what_is_no_text(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"\xe4\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(tmp_path / "x")
