"""The benchmarks run as a user runs them, and speak to machines on their last line."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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


def run_local_training(*options: str) -> tuple[dict, str]:
    """The report and the whole output of a very short run on the tiny backbone."""
    small = ["--model", "tiny", "--device", "cpu", "--clients", "2", "--batch", "2", "--classes", "4", "--repeats", "2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "benchmarks/local_training.py", *small, *options]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout


def check_rates(report: dict) -> None:
    """Rates follow from the times of the repeats; with two of them a median is their mean."""
    assert report["peak_flop_per_s"] >= 0.999 * max(report["products_flop_per_s"].values()) > 0
    for row in report["variants"]:
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        assert row["images_per_s"] == pytest.approx(2 * row["images"] / sum(row["seconds"]))
        assert row["flop_per_s"] == pytest.approx(sum(row["necessary_flop"] / s for s in row["seconds"]) / 2)
        assert 0 < row["utilisation"] < 1
    plain = report["variants"][0]
    for row in report["variants"]:
        ratios = [a / plain["images"] / (b / row["images"]) for a, b in zip(plain["seconds"], row["seconds"], strict=True)]
        assert row["speedup_over_plain"] == pytest.approx(sum(ratios) / 2)


def test_local_training(tmp_path: Path):
    report, out = run_local_training("--json", str(tmp_path / "report.json"))
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "stack of 2 clients" in out.splitlines()[-1] and "one at a time" in out
    plain, single, stack = report["variants"]
    assert [row["name"] for row in (plain, single, stack)] == ["plain path", "one at a time", "stack of 2 clients"]
    assert [row["images"] for row in (plain, single, stack)] == [2, 2, 4]
    assert plain["necessary_flop"] == single["necessary_flop"] == stack["necessary_flop"] / 2
    assert single["speedup_over_one_at_a_time"] == 1.0
    check_rates(report)
    assert report["cpu"] and report["device"] == "cpu" and report["threads_per_rank"] == 1 and report["versions"]["torch"]


def test_evaluation_in_bf16():
    report, _ = run_local_training("--evaluation", "--images", "3", "--precision", "bf16")
    plain, together = report["variants"]
    assert (plain["images"], together["images"]) == (6, 12)
    assert together["necessary_flop"] == pytest.approx(2 * plain["necessary_flop"], abs=1)
    check_rates(report)
    assert report["benchmark"] == "evaluation" and report["precision"] == "bf16" and report["plain_path_timed_for_clients_a_repeat"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--clients", "ten"), "--clients: 'ten' is no list"), (("--batch", "0"), "--batch: 0"), (("--classes", "300"), "250")],
)
def test_local_training_ends_with_one_line_on_bad_options(options: tuple[str, str], words: str):
    command = [sys.executable, "benchmarks/local_training.py", "--model", "tiny", "--device", "cpu", *options]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout


def run_program(program: str, *options: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """A benchmark on one thread, on the CPU wherever the test runs."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, f"benchmarks/{program}", *options]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


def report_of(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report["date"] and report["cpu"] and report["device"] == "cpu" and report["versions"]["torch"]
    return report


def test_round_time(tmp_path: Path):
    sizes = ["--clients", "2", "--classes", "5", "--images-per-class", "3", "--test-images-per-class", "2", "--rounds", "2"]
    done = run_program("round_time.py", "--model", "tiny", *sizes, "--json", str(tmp_path / "report.json"))
    report = report_of(done)
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["classes"] == {"base": 3, "novel": 2} and report["test_images"] == {"base": 6, "novel": 4}
    assert report["training_images"] == 9 and report["clients"] == 2 and len(report["rounds"]) == 2
    parts = ("input", "train", "wait", "exchange", "evaluate", "rest")
    for row in report["rounds"]:
        assert min(row[part] for part in parts) >= 0 and min(row["train"], row["evaluate"]) > 0
        assert sum(row[part] for part in parts) == pytest.approx(row["total"])
    assert report["later"] == report["rounds"][1]
    assert all(part in done.stdout for part in parts)


def test_scaling_on_one_rank():
    options = ["--ranks", "1", "--rounds", "2", "--clients", "100", "--participants", "8"]
    report = report_of(run_program("scaling.py", "overhead", "linear", "registered", *options))
    (overhead,) = report["overhead"]["rows"]
    assert overhead["ranks"] == 1 and 0 < overhead["round_ms_least"] <= overhead["round_ms_p50"] <= overhead["round_ms_p95"]
    assert overhead["exchange_ms_p50"] < overhead["round_ms_p50"]
    assert 10 <= overhead["clients_with_state"] <= 40  # 4 rounds of 10, of which some come again
    assert [(row["participants"], row["images"]) for row in report["linear"]["rows"]] == [(4, 16), (8, 16), (8, 32), (8, 64)]
    assert report["linear"]["s_an_image"] > 0 and report["linear"]["fixed_share_of_largest"] < 0.5
    few, many = report["registered"]["rows"]
    assert (few["registered"], many["registered"]) == (10, 100)
    assert sum(few["state_bytes"].values()) < sum(many["state_bytes"].values())  # of clients that have trained
    assert few["round_without_training_ms"] < 1e3 * few["round_s"] and few["resident_bytes"] > 10**8


def test_scaling_over_rounds_on_two_ranks():
    report = report_of(run_program("scaling.py", "long", "--ranks", "2", "--rounds", "4", "--clients", "1000", "--participants", "4"))[
        "long"
    ]
    assert (report["ranks"], report["registered"], report["participants"]) == (2, 1000, 4)
    assert [len(memory) for memory in report["resident_bytes"]] == [4, 4] and len(report["round_s"]) == 4
    assert len(report["kb_a_round_second_half"]) == 2 and min(report["round_s"]) > 0


@pytest.mark.parametrize(
    ("program", "options", "words"),
    [
        ("scaling.py", ("width",), "there is no measure 'width'"),
        ("scaling.py", ("ranks", "--ranks", "0"), "--ranks: '0'"),
        ("round_time.py", ("--rounds", "0"), "--rounds: 0"),
        ("round_time.py", ("--model", "tiny", "--classes", "3", "--clients", "3"), "data.clients"),
        ("gpu_check.py", (), "needs a machine with a CUDA GPU"),
    ],
)
def test_programs_end_with_one_line_on_what_they_cannot_do(program: str, options: tuple[str, ...], words: str):
    done = run_program(program, *options)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout


def test_a_failing_part_of_the_gpu_check_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu_check = importlib.import_module("gpu_check")
    say = 'print("words"); print(\'{"rate": 3}\'); print("and a launcher\'s warning")'
    commands = {
        "good": say,
        "silent": "pass",
        "broken": "raise SystemExit(3)",
        "slow": "import time; time.sleep(60)",
        "tests": "print('2 passed')",
    }
    parts = [
        gpu_check.Part(name, (sys.executable, "-c", code), 1.0 if name == "slow" else 60.0, name != "tests")
        for name, code in commands.items()
    ]
    ended = {end.name: end for end in gpu_check.run_all([*parts, parts[0]], tmp_path, 300.0, {"date": "today"})}
    assert {name: end.problem for name, end in ended.items()} == {
        "good": "",
        "silent": "no report on its last line",
        "broken": "exit status 3",
        "slow": "not done within 1 s",
        "tests": "",
    }
    assert ended["slow"].seconds < 30 and ended["tests"].said == "2 passed"
    assert json.loads((tmp_path / "good.json").read_text(encoding="utf-8")) == {"date": "today", "rate": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.json", "output.txt"]
    assert [end.problem for end in gpu_check.run_all(parts[:1], tmp_path, 0.5, {})] == ["no time was left"]


def test_the_parts_of_the_gpu_check_fit_its_time_and_are_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu_check = importlib.import_module("gpu_check")
    parts = gpu_check.all_parts(1)
    assert sum(part.limit for part in parts) <= gpu_check.BUDGET
    files = [word for part in parts for word in part.command if word.endswith(".py")]
    assert all((ROOT / file).is_file() for file in files) and "tests/gpu/test_gpu_paths.py" in files
    assert "tests/test_rng.py" in files
