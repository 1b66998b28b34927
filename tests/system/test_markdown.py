"""Markdown: a run's own texts are shown as they are, and end no cell."""

from __future__ import annotations

import re

import pytest

from pfedmma.system import markdown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b c", "a_b c"),
        ("a|b", r"a\|b"),
        ("*x* `y` [z]", r"\*x\* \`y\` \[z\]"),
        ("<b>&", "&lt;b>&amp;"),
        ("two\nlines\x1b", "two lines\ufffd"),
        ("back\\slash", r"back\\slash"),
    ],
)
def test_text_is_shown_as_it_is(text: str, shown: str) -> None:
    assert markdown.escape(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("pfedmma", "`pfedmma`"), ("a|b [c]", r"`a\|b [c]`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```"), ("a\nb", "`a b`")],
)
def test_code_is_fit_for_a_cell(text: str, shown: str) -> None:
    assert markdown.code(text) == shown


def test_a_table_has_a_rule_and_whole_rows() -> None:
    lines = markdown.table(["run", "a", "b"], [["x", "1", "yes"], ["y", "2", "no"]], words=[2])
    assert lines == ["| run | a | b |", "|---|---:|---|", "| x | 1 | yes |", "| y | 2 | no |"]
    cells = markdown.table(["run", "a"], [[markdown.escape("|"), markdown.bold(markdown.code("|"))]])[2]
    assert len(re.split(r"(?<!\\)\|", cells)) == 4
