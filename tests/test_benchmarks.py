"""The benchmarks run as a user runs them, and speak to machines on their last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Counted by hand on ViT-B/16, r = 32: S has 8 blocks of 32*32 + 32 parameters, fp32.
S_BYTES = 8 * (32 * 32 + 32) * 4
BYTES = {"S (pFedMMA)": S_BYTES, "one prompt": 16 * 512 * 4, "all adapters": (399_616 + 266_496) * 4 + S_BYTES}


def run_communication(*launcher: str) -> dict:
    """The report of a very short run without the whole model."""
    command = [
        sys.executable,
        *launcher,
        "benchmarks/communication.py",
        "--repeats",
        "3",
        "--warmup",
        "1",
        "--skip-model",
        "--device",
        "cpu",
    ]
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().splitlines()
    assert sum(line.startswith("{") for line in lines) == 1  # rank 0 alone prints
    return json.loads(lines[-1])


def check_payloads(report: dict, ranks: int) -> None:
    assert report["world_size"] == ranks
    assert {row["name"]: row["payload_bytes"] for row in report["payloads"]} == BYTES
    for row in report["payloads"]:
        assert row["payload_bytes"] == row["parameters"] * 4
        assert row["ring_bytes_per_rank"] == pytest.approx(2 * (ranks - 1) / ranks * row["payload_bytes"])
        assert 0 < row["time_us_p50"] <= row["time_us_p95"]


def test_communication_with_two_ranks():
    report = run_communication("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    check_payloads(report, ranks=2)
    assert BYTES["S (pFedMMA)"] == 33_792
    assert report["backend"] == "gloo" and report["device"] == "cpu" and report["cpu"] and report["versions"]["torch"]
    for row in report["payloads"]:
        # With two ranks the factor 2(n-1)/n is 1.
        assert row["busbw_gb_per_s"] == pytest.approx(row["algbw_gb_per_s"])
        assert row["algbw_gb_per_s"] == pytest.approx(row["payload_bytes"] / row["time_us_p50"] / 1e3)


def test_communication_with_one_rank_claims_no_bandwidth():
    report = run_communication()
    check_payloads(report, ranks=1)
    assert all(row["algbw_gb_per_s"] is None and row["busbw_gb_per_s"] is None for row in report["payloads"])


def test_kept_results_are_whole_and_name_no_place():
    for file in (ROOT / "benchmarks" / "results").glob("communication-*.json"):
        text = file.read_text(encoding="utf-8")
        report = json.loads(text)
        assert report["date"] and report["payloads"][0]["payload_bytes"] == S_BYTES
        assert str(ROOT) not in text and "/home" not in text and "/tmp" not in text
