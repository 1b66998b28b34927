"""LaTeX of texts that may hold anything."""

from __future__ import annotations

import pytest

from pfedmma.system import latex


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain text, 12.5 (ok)!", "plain text, 12.5 (ok)!"),
        ("a_b & 50% #1", r"a\_b \& 50\% \#1"),
        ("{x} $y$", r"\{x\} \$y\$"),
        ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("<|>", r"\textless{}\textbar{}\textgreater{}"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("[1ex] *", "{[}1ex{]} {*}"),  # after the end of a line they would be its arguments
        ("a-b --c ---", "a-b -{}-c -{}-{}-"),
        ("``?`''", "{`}{`}?{`}{'}{'}"),
        ('"q"', r"{\char34}q{\char34}"),
        ("1.0 ± 0.5", r"1.0 $\pm$ 0.5"),
        ("Crème brûlée, Łódź, Ångström, çğő", r"Cr\`{e}me br\^{u}l\'{e}e, \L{}\'{o}d\'{z}, \r{A}ngstr\"{o}m, \c{c}\u{g}\H{o}"),
        ("中", "U+4E2D"),
        ("a\nb\n\tc", "a b c"),
        ("\x00\x1b[2J", "U+FFFDU+FFFD{[}2J"),
        ("", ""),
    ],
)
def test_a_text_is_shown_as_it_is(text: str, escaped: str) -> None:
    assert latex.escape(text) == escaped and escaped.isascii()


def test_every_character_becomes_ascii_without_an_open_brace() -> None:
    for number in [*range(0x250), 0x2014, 0x4E2D, 0x1F600]:
        text = latex.escape(f"a{chr(number)}b")
        bare = text.replace(r"\{", "").replace(r"\}", "")
        assert text.isascii() and text.isprintable() and bare.count("{") == bare.count("}")
        assert bare.count("$") - bare.count(r"\$") in (0, 2)


def test_a_table() -> None:
    assert latex.table(("name", "x_1"), [["[a", "1"], ["b&c", "-"]]) == [
        r"\begin{tabular}{lr}",
        r"\hline",
        r"name & x\_1 \\",
        r"\hline",
        r"{[}a & 1 \\",
        r"b\&c & - \\",
        r"\hline",
        r"\end{tabular}",
    ]
