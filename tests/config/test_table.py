"""The tables of settings: in ``configs/README.md``, and in ``--help``."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.config import table
from pfedmma.config.schema import Config
from pfedmma.system.errors import UserError
from pfedmma.system.options import described
from tests.support.programs import python

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "configs" / "README.md"


def test_the_tables_of_the_readme_are_what_the_dataclasses_say() -> None:
    # In a process of its own: tests register methods of theirs in this one.
    ended = python(["-m", "pfedmma.config.table"])
    found = README.read_text(encoding="utf-8").partition(table.BEGIN)[2].partition(table.END)[0]
    assert found.strip() == ended.stdout.strip(), "run: python -m pfedmma.config.table configs/README.md"


def test_every_setting_has_a_row() -> None:
    rows = [line for line in table.markdown().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [item.name for item in described(Config)]
    assert "| `federation.rounds` | `50` | communication rounds of the whole run | may change |" in rows
    assert all(row.replace(r"\|", "").count("|") == 5 for row in rows)


def test_help_groups_settings_by_section_with_default_and_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = table.explained()
    assert max(map(len, text.splitlines())) <= 80
    paragraphs = text.split("\n\n")
    assert [part.partition(":")[0] for part in paragraphs] == [name or "top level" for name, _, rows in table.sections(Config) if rows]
    words = " ".join(text.split())
    for name, about, rows in table.sections(Config):
        for row in rows:
            assert f"{row.name}={table.written(row.default)} {row.meaning}".strip() in words
        assert not rows or f"{name or 'top level'}: {about}" in words


def test_help_about_one_section_or_one_setting() -> None:
    method = table.explained("method.")
    assert method.startswith("method: ") and "\n\nmethod.promptfl: " in method and "  method.dim=32\n" in method
    assert "federation" not in method.replace("federation.rounds", "") and table.explained("method") == method
    assert [line.split("=")[0].strip() for line in table.explained("method.dim").splitlines() if "=" in line] == ["method.dim"]
    own = table.explained("optimizer.")
    assert own.count("\n\n") == 0 and "reset (every round starts with a fresh optimizer)" in " ".join(own.split())


@pytest.mark.parametrize(("wanted", "words"), [("metod.dim", r"did you mean method\.dim\?"), ("xyz.", "the sections are backbone., data.")])
def test_help_about_what_is_not_there(wanted: str, words: str) -> None:
    with pytest.raises(UserError, match=f"^--help: there is no section or setting '{wanted}'; {words}"):
        table.explained(wanted)


def test_defaults_are_shown_as_they_are_written() -> None:
    assert [table.written(value) for value in (True, 1e-8, "", ("a", "b"), ())] == ["true", "1e-08", "", "a,b", ""]


def test_a_file_gets_the_tables_between_its_marks(tmp_path: Path) -> None:
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    new = table.replaced(text, tmp_path)
    assert new == f"before\n{table.BEGIN}\n\n{table.markdown()}\n\n{table.END}\nafter\n"
    assert table.replaced(new, tmp_path) == new


@pytest.mark.parametrize("text", ["no marks", table.BEGIN, table.END, f"{table.END} {table.BEGIN}"])
def test_a_file_without_the_marks_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no place for the tables"):
        table.replaced(text, Path("page.md"))


def test_every_file_of_the_folder_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    files = sorted(path.relative_to(README.parent).as_posix() for path in README.parent.rglob("*.yaml"))
    assert files
    assert [name for name in files if f"`{name}`" not in text and f"`{name.rpartition('/')[2]}`" not in text] == []
