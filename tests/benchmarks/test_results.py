"""The kept results: whole, dated, and without the folders of a machine."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from pfedmma.compare import grid, published
from tests.benchmarks.programs import RESULTS, ROOT
from tests.benchmarks.test_communication import S_BYTES

FILES = sorted(RESULTS.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_report_says_when_and_on_what(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    report = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", report["date"])
    assert report["cpu"] and report["cpu_count"] and report["versions"]["torch"]
    assert str(ROOT) not in text and "/home" not in text and "/tmp" not in text


def test_payloads_are_those_of_the_method() -> None:
    for file in RESULTS.glob("communication-*.json"):
        assert json.loads(file.read_text(encoding="utf-8"))["payloads"][0]["payload_bytes"] == S_BYTES


# The page beside them.

PAGE = (RESULTS / "README.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of table rows that begin with a method."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]


def kept(name: str) -> list[list[str]]:
    """Of the table of means, which is the first one."""
    return rows((RESULTS / name / "table.md").read_text(encoding="utf-8").split("\n\n")[1])


def section(title: str) -> str:
    """The part of the page under a heading."""
    return next(part for part in PAGE.split("\n## ") if part.startswith(title))


def names(tables: list[list[str]]) -> list[str]:
    """What tells them apart: the number of training images a client, or else what their titles begin with."""
    images = [f"{float(count):g}" for part in tables for count in re.findall(r"([\d.]+) training images a client", part[2])]
    return images if len(set(images)) == len(tables) else [part[0].split(": ")[1].split(",")[0] for part in tables]


STUDIES = sorted(file.parent for file in RESULTS.glob("*/differences.csv"))


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_page_shows_the_differences_that_a_study_found(folder: Path) -> None:
    text = (folder / "table.md").read_text(encoding="utf-8")
    tables = [part.split("\n\n") for part in text.split("**Difference to ")[1:]]
    found = [line for _, table, *_ in tables for line in table.splitlines() if line.startswith("| `")]
    if len(tables) > 1:  # pFedMMA's row of each, under what tells the tables apart; such rows of other methods are theirs
        own = [line.removeprefix("| `pfedmma` |") for line in found if line.startswith("| `pfedmma` |")]
        every = {
            f"| {name} |{line.split('|', 2)[2]}"
            for name, (_, table, *_) in zip(names(tables), tables, strict=True)
            for line in table.splitlines()
        }
        found = [f"| {name} |{line}" for name, line in zip(names(tables), own, strict=True)]
        assert {line for line in PAGE.splitlines() if line.startswith(tuple(f"| {name} |" for name in names(tables)))} <= every
    assert len(found) >= len(tables) > 0 and all(line in PAGE for line in found)
    assert f"configs/compare/{folder.name}.yaml" in PAGE and f"]({folder.name}/table.md)" in PAGE


def test_the_page_shows_the_kept_tables() -> None:
    """Without seconds a round, and with the rates, which stand in a file of their own."""
    means = [row for row in rows(section("On the embedded default")) if len(row) > 5]
    assert [row[:9] for row in means] == [row[:9] for row in kept("embedded")]
    assert {row[0]: row[9] for row in means} == {"`zeroshot`": "-"} | chosen("embedded")
    pacs, caltech = kept("pacs_tiny"), kept("caltech101_tiny")
    assert rows(section("On photographs")) == [[*a[:3], *b[1:4]] for a, b in zip(pacs, caltech, strict=True)]


def chosen(name: str) -> dict[str, str]:
    """The value that was chosen for each method, of a grid of one setting; methods in backticks, as tables have them."""
    with open(RESULTS / name / "candidates.csv", encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["chosen"] == "yes"]
    return {f"`{row['method']}`": row["combination"].partition("=")[2] for row in found}


@pytest.mark.parametrize(("pair", "points", "p"), [("fedlora - local", "17.78", "0.0001"), ("fedmgp - local", "4.46", "0.039")])
def test_differences_that_the_page_speaks_of_are_those_kept(pair: str, points: str, p: str) -> None:
    text = (RESULTS / "embedded" / "table.md").read_text(encoding="utf-8")
    assert re.search(rf"^- {pair}: [+-]{points} points of HM, .* p = {p}$", text, re.MULTILINE)
    assert re.search(rf"\b{float(points):.1f} points[^.]*\bp = {p}\b", PAGE)


def test_the_tests_that_stay_when_many_are_made_are_those_of_the_page() -> None:
    """Bonferroni's: the methods that are told apart from the baseline by themselves alone are named."""
    text = (RESULTS / "embedded" / "table.md").read_text(encoding="utf-8")
    found = {name: float(p) for name, p in re.findall(r"^- (\w+) - local: .* p = (\S+)$", text, re.MULTILINE)}
    left = {name for name, p in found.items() if p * len(found) >= 0.05}
    assert left == {"promptfl", "fedpgp", "promptfolio", "fedmgp", "clipadapter", "pfedmma"} and len(found) == 15
    assert "but for PromptFL, FedPGP, PromptFolio, FedMGP, CLIP-Adapter and pFedMMA" in " ".join(PAGE.split())


def test_every_table_of_the_paper_has_its_file_and_number_of_runs() -> None:
    said = re.findall(r"^\| .* \| `(configs/compare/\w+\.yaml)` \| (\d+)", PAGE, re.MULTILINE)
    assert len(said) == 12 + 14  # of the paper, and beside it
    for file, count in said:
        assert len(grid.read(ROOT / file, ["data.root=DATA"])) == int(count), file
    assert all(str(file.relative_to(ROOT)) in PAGE for file in (ROOT / "configs" / "compare").glob("*.yaml"))


def test_published_averages_on_the_page_are_those_beside_ones_own() -> None:
    numbers = re.findall(r"(\d\d\.\d\d) / (\d\d\.\d\d) / (\d\d\.\d\d) / (\d\d\.\d\d)", " ".join(PAGE.split()))
    assert [tuple(map(float, row)) for row in numbers] == list(published.AVERAGES.values())
