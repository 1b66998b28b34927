"""Every table at a terminal of 80 columns: no cell of it is cut, and what there is no room for is named."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pfedmma import train
from pfedmma.compare import table, written
from pfedmma.compare.done import Failed
from pfedmma.config import schema
from pfedmma.cost import lines, shown
from pfedmma.cost.links import links
from pfedmma.records.folder import RunFolder
from pfedmma.report import command
from pfedmma.report.runs import read_all
from pfedmma.system.console import room, show
from tests.support.compared import done
from tests.support.reported import accuracy, diagnosed, met, run_summary, summary, write_run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import round_time
import variants

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
WIDTH = 80
METHODS = ("fedavg_mma", "pfedmma with S frozen at four times its size", "promptfl")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Shown = Callable[[Callable[[], None]], str]


@pytest.fixture
def shown_by(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What a terminal of 80 columns without colours shows of it; checks what holds of all tables."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def look(work: Callable[[], None]) -> str:
        out = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            work()
        text = out.getvalue()
        tables = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
        assert tables and "…" not in text and max(map(len, tables)) <= WIDTH
        return text

    return look


def result(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_train(shown_by: Shown, tmp_path: Path) -> None:
    whole = run_summary(
        method="fedavg_mma", accuracy=accuracy(90.0) | diagnosed(0.5), zero_shot=accuracy(50.0) | diagnosed(0.25), new_clients=met(range(3))
    )
    text = shown_by(lambda: train.show_result(whole, RunFolder(tmp_path)))
    assert "zeroshot" in text and "fedavg_mma" in text and "12.7 kB" in text and "no room" not in text
    assert "frozen" in text and "75.50" in text


def test_compare(shown_by: Shown) -> None:
    """With standard deviations six columns of scores are too many; a long name is broken, not cut."""
    runs = [done(name, seed, (91.33 + seed, 61.0, 59.0 - seed)) for name in METHODS for seed in (0, 1, 2)]
    failed = Failed(done("promptfl", 3, None).plan, "failed with status 2: error: why", Path("runs/plans/promptfl.log"))
    sheets = table.sheets(runs, (), [failed])
    text = shown_by(lambda: show(written.terminal(sheets[0])))
    assert text.count("92.33 ± 1.00") == 3 and "no room for:" in text and "s / round" in text
    assert all(word in text for name in METHODS for word in name.split()) and "promptfl, seed 3: failed" in " ".join(text.split())


def test_report(shown_by: Shown, tmp_path: Path) -> None:
    for name in METHODS:
        write_run(tmp_path / name, summary(method=name))
    (tmp_path / METHODS[0] / "summary.json").unlink()
    text = shown_by(lambda: command.show_tables(read_all([str(tmp_path / name) for name in METHODS])))
    assert "3 rounds so far" in " ".join(text.split()) and text.count("75.50") == 2


def test_cost(shown_by: Shown) -> None:
    configs = [schema.load(None, ["backbone.name=ViT-B-16", f"method.name={name}"]) for name in ("fedmaple", "pfedmma")]
    found = lines.lines(configs, lines.Sweep(["fp32", "bf16"], [10, 100], [1, 2, 8], links("home=10M,lan=1G"), 0))
    text = shown_by(lambda: [show(each) for each in shown.tables(found, room())])
    assert "3,555,072" in text and "fedmaple" in text


@pytest.mark.parametrize(
    ("name", "anchors"), [("local-training-2cpu-fp32", ["plain", "one_at_a_time"]), ("evaluation-2cpu-fp32", ["plain"])]
)
def test_the_benchmark_of_local_steps(shown_by: Shown, name: str, anchors: list[str]) -> None:
    found = result(name)
    text = shown_by(lambda: show(variants.table("local steps", found, {anchor: anchor.replace("_", " ") for anchor in anchors})))
    for row in found["variants"]:
        assert all(word in text for word in row["name"].split())
        assert f"{100 * row['utilisation']:.1f}%" in text and f"{row['images_per_s']:,.1f}" in text


def test_the_benchmark_of_a_round(shown_by: Shown) -> None:
    found = result("round-time-tiny-2cpu")
    text = shown_by(lambda: show(round_time.table("a round", found["rounds"], found["epochs"])))
    assert f"{found['rounds'][0]['total']:.4f}" in text and "exchange" in text
