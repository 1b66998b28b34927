"""The communication benchmark: payloads as counted by hand, bandwidths that follow from the times."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.programs import LIMIT, TORCHRUN, one_sentence, report_of, run
from tests.support.columns import unexplained

pytestmark = pytest.mark.timeout(LIMIT)

# Counted by hand on ViT-B/16, r = 32: S has 8 blocks of 32*32 + 32 parameters, fp32.
S_BYTES = 8 * (32 * 32 + 32) * 4
BYTES = {"S (pFedMMA)": S_BYTES, "one prompt": 16 * 512 * 4, "all adapters": (399_616 + 266_496) * 4 + S_BYTES}
SHORT = ("--repeats", "3", "--warmup", "1", "--skip-model", "--device", "cpu")


def check_payloads(report: dict[str, Any], ranks: int) -> None:
    assert report["world_size"] == ranks
    assert {row["name"]: row["payload_bytes"] for row in report["payloads"]} == BYTES
    for row in report["payloads"]:
        assert row["payload_bytes"] == row["parameters"] * 4
        assert row["ring_bytes_per_rank"] == pytest.approx(2 * (ranks - 1) / ranks * row["payload_bytes"])
        assert 0 < row["time_us_p50"] <= row["time_us_p95"], "two quantiles of the same repeats"


def test_with_two_ranks() -> None:
    report = report_of(run("communication.py", *SHORT, launcher=TORCHRUN))
    check_payloads(report, ranks=2)
    assert BYTES["S (pFedMMA)"] == 33_792
    assert report["backend"] == "gloo"
    for row in report["payloads"]:
        # With two ranks the factor 2(n-1)/n is 1.
        assert row["busbw_gb_per_s"] == pytest.approx(row["algbw_gb_per_s"])
        assert row["algbw_gb_per_s"] == pytest.approx(row["payload_bytes"] / row["time_us_p50"] / 1e3)


def test_one_rank_claims_no_bandwidth() -> None:
    report = report_of(run("communication.py", *SHORT))
    check_payloads(report, ranks=1)
    assert all(row["algbw_gb_per_s"] is None and row["busbw_gb_per_s"] is None for row in report["payloads"])


def test_payloads_and_dtypes_of_ones_own_and_the_csv(tmp_path: Path) -> None:
    file = tmp_path / "exchange.csv"
    report = report_of(run("communication.py", *SHORT, "--wire", "fp32,bf16", "--payload", "8448,1e3", "--csv", str(file)))
    found = [(row["wire"], row["parameters"], row["payload_bytes"]) for row in report["payloads"]]
    assert found == [("fp32", 8448, S_BYTES), ("fp32", 1000, 4000), ("bf16", 8448, S_BYTES // 2), ("bf16", 1000, 2000)]
    with open(file, newline="") as text:
        lines = list(csv.DictReader(text))
    assert [(line["wire"], int(line["parameters"]), int(line["payload_bytes"])) for line in lines] == found
    seconds = float(lines[0]["exchange_seconds_p50"])
    assert lines[0]["busbw_gigabytes_per_second"] == "" and seconds == pytest.approx(report["payloads"][0]["time_us_p50"] / 1e6)
    assert unexplained(lines[0]) == set()


WRONG = [
    (("--wire", "fp8"), "--wire: 'fp8' is none of"),
    (("--payload", "x"), "--payload: 'x' is no whole number"),
    (("--warmup", "-1"), "--warmup"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_wrong_options(options: tuple[str, ...], words: str) -> None:
    one_sentence(run("communication.py", *options), words)
