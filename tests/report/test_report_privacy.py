"""The section on what a run tells of its clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pfedmma.records.folder import RunFolder
from pfedmma.report import main
from pfedmma.report.privacy import left_open
from pfedmma.report.runs import read
from tests.support.reported import Page, round_, summary, write_run

NOISE = {"epsilon_outsider": 3.0, "epsilon_known_cohorts": 12.64, "epsilon_server": None, "delta": 1e-5, "noise_multiplier": 1.0954}


def run(folder: Path, privacy: dict[str, Any] | None = None, up: int = 12_672, trained: int = 40_800, **settings: str) -> Path:
    """A run with these settings, named without dots; ``privacy``: of its last row."""
    made = summary(up=up, trained_parameters=trained)
    made["config"] |= {name.replace("__", "."): value for name, value in settings.items()}
    rows = [round_(n, 4, None, up) | {"shared_norm": 8.0 + n} for n in (1, 2)]
    rows[-1] |= {"privacy": privacy} if privacy else {}
    return write_run(folder, made, rows)


def sentences(folder: Path, *args: Any, **settings: Any) -> list[str]:
    return list(left_open(read(RunFolder(run(folder, *args, **settings)))))


def test_a_plain_run_says_the_worst_first(tmp_path: Path) -> None:
    said = sentences(tmp_path / "run")
    assert said[0] == "The server sees each client's upload."
    assert "name its classes" in said[1] and "domain" in said[2] and "No noise is added" in said[3]
    assert said[-1].startswith("Not covered in any case")


def test_an_own_start_protects_classes_only_where_something_is_private(tmp_path: Path) -> None:
    assert not any("name its classes" in each for each in sentences(tmp_path / "a", method__private_init="own"))
    assert any("name its classes" in each for each in sentences(tmp_path / "b", trained=3_168, method__private_init="own"))


def test_what_sends_nothing_leaves_nothing_open(tmp_path: Path) -> None:
    assert sentences(tmp_path / "run", up=0) == ["Nothing travels but who takes part, and what is tested."]


@pytest.mark.parametrize(
    ("settings", "there", "missing"),
    [
        ({}, ["adds the noise itself: nothing bounds what it learns from the uploads", "12.6 bounds little", "follow from the seed"], []),
        ({"privacy__secure_sum": "True"}, ["it learns from the sums"], ["sees each client's upload", "domain"]),
        ({"privacy__noise": "clients"}, ["upload, with a share of the noise."], ["adds the noise itself", "name its classes"]),
        ({"privacy__key_file": "key"}, ["12.6 bounds little"], ["follow from the seed"]),
    ],
    ids=["server", "secure", "clients", "key"],
)
def test_with_noise(tmp_path: Path, settings: dict[str, str], there: list[str], missing: list[str]) -> None:
    said = " ".join(sentences(tmp_path / "run", NOISE, **settings))
    assert all(part in said for part in there), said
    assert not any(part in said for part in missing), said


def test_the_page_has_epsilon_and_the_norm_by_round(tmp_path: Path) -> None:
    runs = [run(tmp_path / "with", NOISE, privacy__clip="1.0"), run(tmp_path / "without")]
    page, text = tmp_path / "page.html", tmp_path / "page.md"
    main([*map(str, runs), "--html", str(page), "--markdown", str(text)])
    markdown = text.read_text(encoding="utf-8")
    assert "| pfedmma, clip 1.0 | 1.0 | 1.095 | 3 | 12.6 | unbounded | 1e-05 |" in markdown
    assert "| pfedmma | - | - | - | - | - | - |" in markdown
    seen = Page.from_file(page)
    assert "privacy" in seen.sections() and "pfedmma, clip 1.0, round 2: 10" in seen.texts


def test_without_noise_there_is_no_epsilon(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    main([str(run(tmp_path / "run")), "--html", str(page)])
    assert "Epsilon after" not in page.read_text(encoding="utf-8")
