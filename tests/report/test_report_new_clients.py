"""The section on clients that came after the last round."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.report import main
from tests.support.reported import Page, met, summary, write_run


def report(*runs: Path) -> tuple[Page, str]:
    """The page of these runs, and its Markdown."""
    page, text = runs[0].parent / "page.html", runs[0].parent / "page.md"
    main([*map(str, runs), "--html", str(page), "--markdown", str(text)])
    return Page.from_file(page), text.read_text(encoding="utf-8")


def test_a_run_without_them_has_no_such_section(tmp_path: Path) -> None:
    page, text = report(write_run(tmp_path / "run"))
    assert "new-clients" not in page.sections() and "New clients" not in text


def test_each_way_and_length_stands_beside_zero_shot(tmp_path: Path) -> None:
    page, text = report(write_run(tmp_path / "run", summary(new_clients=met((1, 3)))))
    assert "new-clients" in page.sections()
    assert "2 new clients after so many epochs alone" in text
    for row in (
        "| zero-shot |  |  | 45.00 | 60.00 | 62.00 | 35.00 |",
        "| pfedmma | frozen | 0 | 50.00 (+5.00) | 60.00 (+0.00) | 62.00 (+0.00) | 40.00 (+5.00) |",
        "| pfedmma | frozen | 5 | 55.00 (+10.00) |",
        "| pfedmma | free | 5 | 60.00 (+15.00) |",
        "| pfedmma | new clients | 0 B | 25.3 kB |",
    ):
        assert row in text, row
    assert "Local, frozen" in page.texts and "Novel, free" in page.texts
    assert "pfedmma, epoch 5: 55" in page.texts and "pfedmma, round 5: 55" not in page.texts


def test_runs_are_drawn_together_where_their_new_clients_are_the_same(tmp_path: Path) -> None:
    ours, theirs = summary(new_clients=met((1, 3))), summary("local", new_clients=met((1, 3), start=40.0))
    other = summary("fedavg_mma", new_clients=met((0,), start=30.0))
    runs = [write_run(tmp_path / made["method"], made) for made in (ours, theirs, other)]
    page, text = report(*runs)
    assert text.count("| zero-shot |  |  | 45.00 |") == 2
    assert (
        text.index("| local | free | 5 | 50.00 (+5.00) |") < text.index("1 new clients after") < text.index("| fedavg_mma | frozen | 0 |")
    )
    assert {"pfedmma, epoch 5: 60", "local, epoch 5: 50", "fedavg_mma, epoch 5: 40"} <= set(page.texts)


@pytest.mark.parametrize("ways", [("free",), ("frozen",)])
def test_one_way_alone(ways: tuple[str, ...], tmp_path: Path) -> None:
    page, text = report(write_run(tmp_path / "run", summary(new_clients=met((2,), epochs=(3,), ways=ways))))
    assert f"| pfedmma | {ways[0]} | 3 |" in text and f"Local, {ways[0]}" in page.texts
