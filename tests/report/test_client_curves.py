"""Clients round by round, and diagnostics, on the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pfedmma.report import charts, client_curves, main
from pfedmma.report.runs import read_all
from tests.support.reported import Page, accuracy, diagnosed, round_, summary, write_run


def each(local: Sequence[float | None], **more: list[float | None]) -> dict[str, Any]:
    return {"per_client": {"clients": list(range(len(local))), "local": list(local)} | more}


def page_of(*runs: Path) -> Page:
    target = runs[0].parent / "page.html"
    main([*map(str, runs), "--html", str(target)])
    return Page.from_file(target)


def captions(page: Page) -> list[str]:
    return [text for text in page.texts if "clients, percent" in text]


def test_every_client_has_a_line_and_the_worst_and_best_are_named(tmp_path: Path) -> None:
    rounds = [round_(n, 3, accuracy(70.0)) | each(local, base=[50.0, 50.0, 50.0]) for n, local in ((1, [10, 20, 60]), (2, [40, 30, 80]))]
    page = page_of(write_run(tmp_path / "run", rounds=rounds))
    assert captions(page) == [
        "Local of 3 clients, percent; at the end worst 1 (30.00), best 2 (80.00)",
        "Base of 3 clients, percent; at the end worst 0 (50.00), best 0 (50.00)",
    ]
    for said in (
        "client 0: 10 to 40",
        "mean, round 1: 30",
        "mean, round 2: 50",
        "client 1, round 2: 30",
        "client 2",
        "worst client at the end",
    ):
        assert said in page.texts, said
    assert [value for name, value in page.attributes if name == "class"].count("thin") == 6


def test_of_several_runs_local_alone_is_drawn(tmp_path: Path) -> None:
    rounds = [round_(1, 2, accuracy(70.0)) | each([10, 20], base=[50.0, 51.0])]
    page = page_of(*(write_run(tmp_path / name, summary(name), rounds) for name in ("pfedmma", "local", "zeroshot")))
    assert [text.split(" of ")[0] for text in captions(page)] == ["pfedmma: Local", "local: Local"]


def test_a_client_that_is_not_tested_leaves_a_gap(tmp_path: Path) -> None:
    later = {"per_client": {"clients": [0, 2], "local": [30.0, None]}}
    rounds = [round_(1, 3, accuracy(70.0)) | each([10, 20, None]), round_(2, 3, None), round_(3, 3, accuracy(70.0)) | later]
    page = page_of(write_run(tmp_path / "run", rounds=rounds))
    assert captions(page) == ["Local of 2 clients, percent; at the end worst 1 (20.00), best 0 (30.00)"]
    assert "mean, round 1: 15" in page.texts and "mean, round 3: 30" in page.texts and "client 1: 20 to 20" in page.texts


def test_a_run_that_goes_on_shows_its_clients_so_far(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rounds=[round_(1, 2, accuracy(70.0)) | each([10, 20])])
    (run / "summary.json").unlink()
    assert captions(page_of(run)) == ["Local of 2 clients, percent; at the end worst 0 (10.00), best 1 (20.00)"]


def test_without_any_nothing_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert client_curves.figure(read_all([str(run)])) is None and captions(page_of(run)) == []


def test_a_hundred_clients_over_many_rounds_stay_small(tmp_path: Path) -> None:
    rounds = [round_(n, 100, accuracy(70.0)) | each([(client * 7 + n) % 101 for client in range(100)]) for n in range(1, 601)]
    page = page_of(write_run(tmp_path / "run", summary(clients=100, rounds=600), rounds))
    (caption,) = captions(page)
    assert caption.endswith("; each point is the mean of 10 evaluations")
    paths = [value for name, value in page.attributes if name == "d" and value.count("L") > 40]
    assert max(value.count("L") for value in paths) < charts.MOST_POINTS and (tmp_path / "page.html").stat().st_size < 300_000
    thin = [value for value in paths if value.count("L") == 600 // 10 - 1]
    assert len(thin) >= 100


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_clients_that_are_all_alike(tmp_path: Path, value: float) -> None:
    page = page_of(write_run(tmp_path / "run", rounds=[round_(1, 2, accuracy(70.0)) | each([value, value])]))
    assert len(captions(page)) == 1 and f"mean, round 1: {value:g}" in page.texts
    numbers = [text for name, text in page.attributes if name in ("d", "x", "y", "x1", "y1")]
    assert not any(re.search("nan|inf", text) for text in numbers)


def test_diagnostics_are_a_table_beside_zero_shot_and_curves(tmp_path: Path) -> None:
    made = summary(accuracy=accuracy(90.0) | diagnosed(0.625), zero_shot=accuracy(61.25) | diagnosed(0.5, None))
    run = write_run(tmp_path / "run", made, [round_(n, 4, accuracy(70.0) | diagnosed(0.5 + n / 16)) for n in (1, 2)])
    main([str(run), "--markdown", str(tmp_path / "page.md"), "--html", str(tmp_path / "page.html")])
    text, page = (tmp_path / "page.md").read_text(), Page.from_file(tmp_path / "page.html")
    assert "| run | alignment margin | modality gap | ECE, percent | CKA of S between clients |" in text
    assert "| zero-shot | 0.5000 | 0.2500 | 12.50 | - |" in text and "| pfedmma | 0.6250 | 0.2500 | 12.50 | 0.7500 |" in text
    assert "pfedmma, round 2: 0.625" in page.texts and "Alignment margin" in page.texts
    assert "alignment" not in page_of(write_run(tmp_path / "plain")).text


def test_a_method_without_s_has_no_curve_of_it(tmp_path: Path) -> None:
    made = summary("promptfl", accuracy=accuracy(90.0) | diagnosed(0.625, None))
    page = page_of(write_run(tmp_path / "run", made, [round_(n, 4, accuracy(70.0) | diagnosed(0.5, None)) for n in (1, 2)]))
    assert "Modality gap" in page.texts and "CKA of S between clients" in page.texts  # the table's column
    assert page.texts.count("ECE, percent") == 2 and page.texts.count("CKA of S between clients") == 1
