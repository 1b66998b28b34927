"""The progress bar, and the lines beside it, at terminals and in files."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from pfedmma.run.display import accuracy_table, round_done
from pfedmma.system.console import ProgressBar, printable, show, table_that_fits
from tests.support.reported import accuracy, round_row, run_summary

Ends = Callable[..., tuple[io.StringIO, io.StringIO]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    """Stands for stdout and stderr: which of them are terminals."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    def put(out: bool, err: bool) -> tuple[io.StringIO, io.StringIO]:
        streams = [Terminal() if terminal else io.StringIO() for terminal in (out, err)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        return streams[0], streams[1]

    return put


def test_in_a_file_there_are_lines_alone(ends: Ends) -> None:
    out, err = ends(False, False)
    with ProgressBar("round", 3) as progress:
        progress.say("a line [bold] :smile:")
        progress.update(2, "loss 0.5")
        progress.complain("a problem")
    assert (out.getvalue(), err.getvalue()) == ("a line [bold] :smile:\n", "a problem\n") and not progress.live


def test_at_a_terminal_the_bar_stays_below_the_lines(ends: Ends) -> None:
    out, _ = ends(True, True)
    with ProgressBar("round", 5, 1) as progress:
        progress.update(4, "loss 0.5")
        progress.say("a line [bold] :smile:")
    shown = out.getvalue()
    assert progress.live and "4/5" in shown and "loss 0.5" in shown and "a line [bold] :smile:" in shown
    assert shown.rstrip().endswith("\x1b[?25h") and "4/5" in shown[shown.index("a line") :]


def test_other_ranks_are_silent(ends: Ends) -> None:
    out, err = ends(True, True)
    with ProgressBar("round", 5, silent=True) as progress:
        progress.say("a line")
        progress.update(1, "")
        progress.complain("a problem")
    assert out.getvalue() == err.getvalue() == "" and not progress.live


def test_answers_in_a_file_leave_the_bar_to_stderr(ends: Ends) -> None:
    out, err = ends(False, True)
    with ProgressBar("images", 2, beside_answers=True) as progress:
        for number in (1, 2):
            progress.say(f"answer {number}")
            progress.advance()
    assert out.getvalue() == "answer 1\nanswer 2\n" and "images" in err.getvalue() and "2/2" in err.getvalue()
    assert err.getvalue().endswith("\x1b[2K")  # the bar is wiped out at the end


@pytest.mark.parametrize("options", [{}, {"beside_answers": True, "bar": False}])
def test_without_a_wish_for_it_stderr_has_no_bar(ends: Ends, options: dict[str, bool]) -> None:
    out, err = ends(False, True)
    with ProgressBar("round", 2, **options) as progress:
        progress.say("a line")
        progress.advance()
    assert (out.getvalue(), err.getvalue()) == ("a line\n", "")


def test_a_round_is_a_line_where_it_was_evaluated_or_there_is_no_terminal(ends: Ends) -> None:
    rows = [round_row(1), round_row(2, evaluated=accuracy(70.0, novel=None))]
    lines = ["round 1/2  loss 2.0000  0.63 s", "round 2/2  loss 1.0000  local 70.00  base 60.00  novel -  hm 60.00  0.63 s"]
    for terminal in (False, True):
        out, _ = ends(terminal, terminal)
        with ProgressBar("round", 2) as progress:
            for row in rows:
                round_done(progress, row)
        assert [line in out.getvalue() for line in lines] == [not terminal, True]
    assert "2/2" in out.getvalue()


def test_the_table_of_accuracies(capsys: pytest.CaptureFixture[str]) -> None:
    show(accuracy_table("a title", [("first", run_summary().accuracy, "12 B"), ("second", None, "-")]))
    lines = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["first", "90.00", "60.00", "62.00", "80.00", "75.50", "12 B"],
        ["second", "-", "-", "-", "-", "-", "-"],
    ]


def test_what_no_terminal_should_be_sent() -> None:
    assert printable("a\x1b[2Jb\ud800c\td") == "a\ufffd[2Jb\ufffdc\td"


@pytest.mark.parametrize(("width", "kept"), [(41, 4), (40, 3), (30, 3), (29, 2), (22, 2), (21, 1), (1, 1)])
def test_a_table_leaves_out_columns_and_cuts_nothing(width: int, kept: int) -> None:
    head, row = ["name", "a\nround", "bytes", "last one"], ["a [b] name", "12", "1,024", "x"]
    table = table_that_fits("title", head, [row], width, "own words")  # 10 + 5 + 5 + 8 characters, and 3 a column and 1 around them
    assert len(table.columns) == kept and all(column.no_wrap for column in table.columns)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert all(cell in text for cell in row[:kept]) and "own words" in text
    left_out = ["a round", "bytes", "last one"][kept - 1 :]
    assert (f"no room for: {', '.join(left_out)}" in " ".join(text.split())) == bool(left_out)
