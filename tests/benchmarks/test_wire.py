"""What travels between ranks, counted at network interfaces: the arithmetic by hand, and a small run where there is root and ``ip``."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pfedmma.system.errors import UserError
from tests.benchmarks.programs import LIMIT, PATIENCE, ROOT, environment

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("wire")


def readings(wire: ModuleType, *received: int) -> list[Any]:
    """A rank's: the start, two rounds with an evaluation after each, and a checkpoint, with what it received for each."""
    calls = [("startup", "start", 4)]
    for _ in range(2):
        calls += [("rounds", "metrics", 8), ("rounds", "exchange", 1000), ("evaluation", "metrics", 64)]
    calls.append(("checkpoint", "checkpoint", 4))
    return [wire.Reading(*call, count, 0, 1) for call, count in zip(calls, received, strict=True)]


def ledger() -> dict[str, Any]:
    bookkeeping = {
        "start": {"collectives": 1, "payload_bytes": 4},
        "metrics": {"collectives": 4, "payload_bytes": 144},
        "checkpoint": {"collectives": 1, "payload_bytes": 4},
    }
    return {"collectives": 2, "payload_bytes": 2000, "bookkeeping": bookkeeping}


def test_the_parts_of_a_run_by_hand(wire: ModuleType):
    own = [readings(wire, 500, 10, 1100, 30, 20, 1200, 50, 7), readings(wire, 400, 10, 1000, 30, 30, 1000, 50, 9)]
    ends = [{"rx_bytes": 2930, "tx_bytes": 1, "rx_packets": 8}, {"rx_bytes": 2529, "tx_bytes": 2, "rx_packets": 9}]
    found = wire.account(own, ends, {"payload_bytes": 1000, "ring_bytes_per_rank": 1000.0}, rounds=2)
    assert found["measured_received_per_rank_per_round"] == [(1100 + 1200) / 2, (1000 + 1000) / 2]
    assert found["losses_received_per_rank_per_round"] == [(10 + 20) / 2, (10 + 30) / 2]
    assert found["ratio"] == pytest.approx(1.15) and found["ratio_with_losses"] == pytest.approx(1.165)
    assert found["phases"] == {
        "startup": [500, 400],
        "rounds": [2330, 2040],
        "evaluation": [80, 80],
        "checkpoint": [7, 9],
        "shutdown": [13, 0],
    }
    assert [sum(phase[rank] for phase in found["phases"].values()) for rank in (0, 1)] == found["total_rx_bytes"] == [2930, 2529]
    assert found["collectives"]["evaluation"] == {"collectives": 2, "payload_bytes": 128}


def test_the_rank_farthest_from_the_model_counts(wire: ModuleType):
    assert wire.farthest([1.01, 0.9, 1.05]) == 0.9
    assert wire.farthest([1.01, 0.97, 1.05]) == 1.05


def test_a_collective_that_the_ledger_does_not_know_is_an_error(wire: ModuleType):
    own = readings(wire, *[0] * 8)
    wire.check_ledger([own, own], ledger())
    with pytest.raises(UserError, match="the ledger says"):
        wire.check_ledger([[*own, wire.Reading("checkpoint", "exchange", 1000, 0, 0, 0)]], ledger())
    with pytest.raises(UserError, match="ranks 0 and 1"):
        wire.check_ledger([own, own[:-1]], ledger())


def test_the_table_says_what_misses_its_bound(wire: ModuleType):
    run = {"bound": 0.1, "within_bound": True, "ratio": 1.074, "ratio_with_losses": 1.1, "unmetered_ratio": 0.99}
    run |= {"private_bytes_of_a_client": 2_664_448}
    run |= {"total_rx_bytes": [100], "unmetered_total_rx_bytes": [99], "mtu": 1500, "gso_max_size": 65536, "gso_max_segs": 65535}
    text = "\n".join(wire.remarks(run))
    assert "+7.40 %" in text and "within the bound of 10 %" in text and "2,664,448" in text and "65,536" in text
    assert "MISSES" in wire.remarks(run | {"within_bound": False})[0]
    assert "1,500 bytes" in wire.remarks(run | {"gso_max_segs": 1})[-3]


def run_wire(*options: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "benchmarks/wire.py", "--limit", str(PATIENCE), *options]
    return subprocess.Popen(command, cwd=ROOT, env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_without_ip_it_says_so(tmp_path: Path):
    process = run_wire(PATH=str(tmp_path))
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and not out
    assert error == "error: there is no 'ip' on PATH; install iproute2\n"


@pytest.fixture
def namespaces(wire: ModuleType) -> Iterator[None]:
    """Skips where no network namespaces can be had."""
    try:
        wire.require_namespaces()
        with wire.network(2, frames=False):
            pass
    except UserError as error:
        pytest.skip(str(error))
    yield


def left_behind(process: int) -> list[str]:
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in names if name.startswith(f"pfedmma-{process}-")]


@pytest.mark.slow
def test_a_small_run_is_accounted_for(namespaces: None, tmp_path: Path):
    options = ("--backbone", "tiny", "--ranks", "2", "--rounds", "2", "--methods", "pfedmma", "--settle", "0.1")
    process = run_wire(*options, "--out", str(tmp_path / "report.json"))
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    report = json.loads(out.splitlines()[-1])
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["benchmark"] == "wire" and report["date"] and report["versions"]["torch"] and report["cpu"]
    (run,) = report["runs"]
    assert (run["name"], run["world_size"], run["rounds"], run["bound"]) == ("pfedmma", 2, 2, None)
    # tiny: 3 blocks of 32 x 32 + 32 numbers; with two ranks the factor 2(n-1)/n is 1.
    assert run["payload_bytes_per_round"] == run["ring_bytes_per_rank"] == 3 * (32 * 32 + 32) * 4
    assert len(run["measured_received_per_rank_per_round"]) == 2
    # Ranks that wait for others say so now and then, which counts too; twice as much would be another exchange.
    assert 1.0 < run["ratio"] < 2.0 and run["ratio"] < run["ratio_with_losses"]
    assert all(1.0 < count / run["ring_bytes_per_rank"] <= run["ratio"] for count in run["measured_received_per_rank_per_round"])
    assert set(run["phases"]) == {"startup", "rounds", "evaluation", "checkpoint", "shutdown"}
    for rank, total in enumerate(run["total_rx_bytes"]):
        assert sum(phase[rank] for phase in run["phases"].values()) == total < run["private_bytes_of_a_client"]
        assert run["unmetered_total_rx_bytes"][rank] == pytest.approx(total, rel=0.5)
    assert run["collectives"]["checkpoint"]["collectives"] == 2 * 3, "three a checkpoint"
    exchanged, others = run["payload_bytes_per_round"], run["collectives"]["rounds"]
    assert others["collectives"] == 4 and 0 < others["payload_bytes"] - 2 * exchanged < 100, "two exchanges, and the losses before them"
    assert left_behind(process.pid) == []


def test_stopped_halfway_it_leaves_nothing_behind(namespaces: None):
    process = run_wire("--backbone", "tiny", "--ranks", "2")
    deadline = time.monotonic() + PATIENCE
    running: list[str] = []
    while not running and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        found = subprocess.run(["ip", "netns", "pids", f"pfedmma-{process.pid}-1"], capture_output=True, text=True)
        running = found.stdout.split()
    assert running and len(left_behind(process.pid)) == 3  # one for each rank, and one for the bridge
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # an impatient user
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and error == "interrupted\n"
    assert left_behind(process.pid) == [] and not any(Path("/proc", rank).exists() for rank in running)


def test_a_failing_rank_is_named(namespaces: None):
    process = run_wire("--backbone", "tiny", "--ranks", "2", "--methods", "fedfoo")
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and "fedfoo" in error and error.startswith("error: rank ") and len(error.splitlines()) == 1
    assert left_behind(process.pid) == []


def test_kept_results_are_within_their_bounds(wire: ModuleType):
    files = sorted((ROOT / "benchmarks" / "results").glob("wire-*.json"))
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        report = json.loads(text)
        assert report["date"] and str(ROOT) not in text and "/tmp" not in text
        for run in report["runs"]:
            for rank, total in enumerate(run["total_rx_bytes"]):
                assert sum(phase[rank] for phase in run["phases"].values()) == total
            # On a wire of small frames headers and acknowledgements are more than that.
            assert run["within_bound"] or run["gso_max_segs"] == 1
