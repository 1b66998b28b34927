"""The benchmark of local steps and of evaluation: its rates follow from its times, and count necessary work alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.programs import LIMIT, one_sentence, report_of, run

pytestmark = pytest.mark.timeout(LIMIT)
SMALL = ("--model", "tiny", "--device", "cpu", "--clients", "2", "--batch", "2", "--classes", "4", "--repeats", "2")


def check_rates(report: dict[str, Any]) -> None:
    """Rates follow from the times of the repeats; with two of them a median is their mean."""
    products = report["products_flop_per_s"].values()
    assert min(products) > 0 and report["peak_flop_per_s"] >= 0.999 * max(products), "of each repeat the fastest product"
    for row in report["variants"]:
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["images_per_s"] == pytest.approx(2 * row["images"] / sum(row["seconds"]))
        assert row["flop_per_s"] == pytest.approx(sum(row["necessary_flop"] / s for s in row["seconds"]) / 2)
        assert row["utilisation"] > 0
    plain = report["variants"][0]
    for row in report["variants"]:
        ratios = [a / plain["images"] / (b / row["images"]) for a, b in zip(plain["seconds"], row["seconds"], strict=True)]
        assert row["speedup_over_plain"] == pytest.approx(sum(ratios) / 2)


def test_local_steps(tmp_path: Path) -> None:
    done = run("local_training.py", *SMALL, "--json", str(tmp_path / "report.json"))
    report = report_of(done)
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "stack of 2 clients" in done.stdout.splitlines()[-1] and "one at a time" in done.stdout
    plain, single, stack = report["variants"]
    assert [row["name"] for row in (plain, single, stack)] == ["plain path", "one at a time", "stack of 2 clients"]
    assert [row["images"] for row in (plain, single, stack)] == [2, 2, 4]
    assert plain["necessary_flop"] == single["necessary_flop"] == stack["necessary_flop"] / 2
    assert single["speedup_over_one_at_a_time"] == 1.0
    check_rates(report)
    assert report["date"] and report["threads_per_rank"] == 1


def test_settings_of_a_run_are_what_is_measured() -> None:
    """Adapters of twice the width are more to compute."""
    wide, plain = (report_of(run("local_training.py", *SMALL, "--clients", "1", *more)) for more in (["method.dim=64"], []))
    assert wide["settings"] == ["method.dim=64"] and plain["settings"] == []
    assert wide["variants"][0]["necessary_flop"] > plain["variants"][0]["necessary_flop"]


def test_evaluation_in_bf16() -> None:
    report = report_of(run("local_training.py", *SMALL, "--evaluation", "--images", "3", "--precision", "bf16"))
    plain, together = report["variants"]
    assert (plain["images"], together["images"]) == (6, 12)
    assert together["necessary_flop"] == pytest.approx(2 * plain["necessary_flop"], abs=1)
    check_rates(report)
    assert report["benchmark"] == "evaluation" and report["precision"] == "bf16" and report["plain_path_timed_for_clients_a_repeat"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--clients", "ten"), "--clients: 'ten' is no list"),
        (("--batch", "0"), "--batch: 0"),
        (("--classes", "300"), "250"),
        (("federation.rounds=3",), "federation.rounds=3: nothing here reads it"),
        (("backbone.tf23=true",), "did you mean 'backbone.tf32'"),
    ],
)
def test_bad_options_end_it_with_one_line(options: tuple[str, str], words: str) -> None:
    one_sentence(run("local_training.py", "--model", "tiny", "--device", "cpu", *options), words)
