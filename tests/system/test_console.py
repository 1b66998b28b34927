"""The progress bar, and the lines beside it, at terminals and in files."""

from __future__ import annotations

import datetime
import io
import re
import sys
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table

from pfedmma.run import display
from pfedmma.run.display import accuracy_table, round_done
from pfedmma.run.progress import Left
from pfedmma.system import console
from pfedmma.system.console import ProgressBar, fit, megabytes, printable, show, table_of, table_that_fits, wrapped
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


def test_long_notes_are_broken_between_words_at_a_terminal_alone(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(True, True)
    monkeypatch.setenv("COLUMNS", "30")
    assert wrapped("paired t-test over 12 pairs: +0.06 (-0.91 to +1.04)") == "paired t-test over 12 pairs:\n+0.06 (-0.91 to +1.04)"
    ends(False, False)
    assert wrapped("word " * 30) == "word " * 30


def test_bytes_are_read_by_a_person() -> None:
    assert [megabytes(count) for count in (512, 12_672, 1_349_120_000)] == ["512 B", "12.7 kB", "1,349.120 MB"]


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
    scores = "round 2/2  loss 1.0000  local 70.00  base 60.00  novel -  hm 60.00"
    shown = []
    for terminal in (False, True):
        out, _ = ends(terminal, terminal)
        with ProgressBar("round", 2) as progress:
            for row in rows:
                round_done(progress, row)
        shown.append(out.getvalue())
    lines = [line.rpartition("  ") for line in shown[0].splitlines()]
    assert [line for line, _, _ in lines] == ["round 1/2  loss 2.0000  train 0.63 s", f"{scores}  train 0.43 s  test 0.20 s"]
    assert all(datetime.datetime.fromisoformat(stamp).tzinfo for _, _, stamp in lines)
    assert "2/2" in shown[1] and f"{scores}  0.63 s\n" in shown[1] and "train 0" not in shown[1] and "round 1/2  loss" not in shown[1]


def test_a_round_after_which_clients_are_fine_tuned_says_how_long_that_took(ends: Ends) -> None:
    out, _ = ends(False, False)
    seconds = {"train": 0.5, "fine_tune": 1.25, "evaluate": 0.2, "total": 2.0}
    with ProgressBar("round", 2) as progress:
        round_done(progress, round_row(2, evaluated=accuracy(70.0), seconds=seconds))
    assert "  train 0.55 s  fine-tune 1.25 s  test 0.20 s  " in out.getvalue()


def test_the_bar_says_that_clients_are_fine_tuned(ends: Ends) -> None:
    out, _ = ends(True, True)
    with ProgressBar("round", 2) as progress:
        display.fine_tuning(progress)(4, 12)
    assert "fine-tuning, step 4/12" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())


def test_the_bar_says_what_is_done_and_how_long_it_takes(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = ends(True, True)
    monkeypatch.setenv("COLUMNS", "80")
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with ProgressBar("round", 50) as progress:
        round_done(progress, round_row(7), Left(200.0, more=True))
        now[0] += 20.0
        display.testing(progress)(3.4, 10)
    last = out.getvalue().replace("\x1b[2K", "\r").rsplit("\r", 1)[-1]
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last).strip()
    assert text.startswith("round ") and len(text) <= 80 and "…" not in text
    assert text.endswith(" 7/50 0:03:00+ testing client 4/10 loss 0.2857")


def test_the_table_of_accuracies(capsys: pytest.CaptureFixture[str]) -> None:
    show(accuracy_table("a title", [("first", run_summary().accuracy, "12 B"), ("second", None, "-")]))
    lines = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["first", "90.00", "60.00", "62.00", "80.00", "75.50", "12 B"],
        ["second", "-", "-", "-", "-", "-", "-"],
    ]


def test_what_no_terminal_should_be_sent() -> None:
    assert printable("a\x1b[2Jb\ud800c\td") == "a\ufffd[2Jb\ufffdc\td"


@pytest.mark.parametrize(("width", "kept"), [(41, 4), (37, 4), (36, 3), (30, 3), (29, 2), (22, 2), (21, 1), (14, 1)])
def test_a_table_leaves_out_columns_and_cuts_nothing(width: int, kept: int) -> None:
    """10 + 5 + 5 + 8 characters, and 3 a column and 1 around them; the last head may be broken between its words, of 4 characters."""
    head, row = ["name", "a\nround", "bytes", "last one"], ["a [b] name", "12", "1,024", "x"]
    table = table_that_fits("title", head, [row], width, "own words")
    text = rendered(table, width)
    assert len(table.columns) == kept and max(map(len, text.splitlines())) <= width
    assert all(cell in text for cell in row[:kept]) and "own words" in " ".join(text.split())
    left_out = ["a round", "bytes", "last one"][kept - 1 :]
    assert (f"no room for: {', '.join(left_out)}" in " ".join(text.split())) == bool(left_out)


def rendered(table: Table, width: int) -> str:
    shown = Console(width=width, record=True, file=io.StringIO())
    shown.print(table)
    return shown.export_text()


def test_long_names_and_texts_are_broken_between_words_and_numbers_are_not() -> None:
    table = Table("name", "what it is")
    table.add_column("value", justify="right")
    name, said = "a name of several words, longer than half a line", "words that say what it is, as many as there is room for in one line"
    table.add_row(name, said, "91.33 ± 0.52")
    text = rendered(fit(table, 60), 60)
    assert "91.33 ± 0.52" in text and "…" not in text and "no room" not in text and max(map(len, text.splitlines())) <= 60
    assert all(word in text for word in (name + " " + said).split())
    text = rendered(table_that_fits("t", ["name", "value"], [["x" * 50, "1"]], 20), 20)
    assert text.count("x") == 50 and "no room for: value" in " ".join(text.split())  # what is no words is broken anywhere


def test_in_a_file_a_table_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    show(table_of("title", ["name", *(f"column{i}" for i in range(20))], [["a", *["1234567890"] * 20]]))
    text = capsys.readouterr().out
    assert "column19" in text and text.count("1234567890") == 20 and "no room" not in text
