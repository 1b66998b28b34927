"""The benchmark of dealing clients to ranks: what it counts can be checked by hand, and what it measures is of the same rounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.programs import LIMIT, RESULTS, ROOT, TORCHRUN, one_sentence, report_of, run

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.mark.slow
def test_what_is_counted_and_measured(tmp_path: Path) -> None:
    sizes = ["--rounds", "3", "--measured-rounds", "1", "--json", str(tmp_path / "report.json")]
    report = report_of(run("balance.py", *sizes, launcher=TORCHRUN))
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    counted = {one["setting"]: one for one in report["counted"]}
    # 24 base classes: nine clients have two, 32 images, a step an epoch; the last one six, so three; two epochs each. 24 steps in all.
    dtd = counted["dtd"]
    assert (dtd["clients"], dtd["participants"], dtd["rounds"], dtd["steps"]) == (10, 10, 1, [2, 6])
    # In turn, rank 1 of two has clients 1 3 5 7 9: 14 steps; of four, clients 1 5 9: 10; of eight, 1 and 9: 8; of 64, 9 alone.
    assert [dtd["speedup"][size]["in turn"] for size in ("2", "4", "8", "64")] == pytest.approx([24 / 14, 24 / 10, 24 / 8, 24 / 6])
    assert [dtd["speedup"][size]["longest first"] for size in ("2", "4", "8", "64")] == pytest.approx([2, 4, 4, 4])
    for one in counted.values():
        for size, both in one["speedup"].items():
            assert both["longest first"] <= min(float(size), one["most"]) + 1e-9
            assert both["longest first"] >= both["in turn"] - 1e-9
    measured = report["measured"]
    assert measured["rounds"] == 1 and all(seconds > 0 for seconds in measured["seconds"].values())
    longest = measured["steps_of_the_longest_rank"]
    assert longest["longest first"] <= longest["in turn"] <= longest["one rank"]


def test_bad_options_end_it_with_one_line() -> None:
    one_sentence(run("balance.py", "--rounds", "0"), "--rounds: 0")


def test_the_page_shows_the_kept_result() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    report = json.loads((RESULTS / "balance-2cpu.json").read_text(encoding="utf-8"))
    for one in report["counted"]:
        cells = [f"{both['in turn']:.1f} / {both['longest first']:.1f}" for both in one["speedup"].values()]
        assert " | ".join([*cells, f"{one['most']:.1f}"]) in page
