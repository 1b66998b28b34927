"""The benchmark of all methods: their bytes, ratios that follow from times and operations, and a plain path that computes the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.methods.registry import NAMES
from pfedmma.system.errors import UserError
from tests.benchmarks.programs import LIMIT, one_sentence, report_of, run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import methods
from one_rank import OneRank, Setting
from operators import record
from plain_rank import PlainRank, plain

pytestmark = pytest.mark.timeout(LIMIT)
SMALL = ("--model", "tiny", "--device", "cpu", "--clients", "2", "--batch", "2", "--classes", "4", "--images", "3", "--repeats", "2")
BYTES = {"promptfl": (256, 1024, 1024), "fedmgp": (1920, 3072, 3072)}  # at the tiny CLIP: trained numbers, bytes up and down


@pytest.fixture(scope="module")
def measured() -> dict[str, methods.Measured]:
    """Every method on a tiny CLIP, two clients of two images."""
    cpu = torch.device("cpu")
    clip = create_model(BackboneConfig("tiny", "none"), seed=0)
    backbone = Backbone.freeze(clip, "tiny")
    found = {}
    for name in NAMES:
        setting = Setting("tiny", name, "fp32", 2, 4, 3)
        found[name] = methods.Measured(name, OneRank(setting, cpu, backbone), PlainRank(setting, cpu, plain(backbone, clip)), 2)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_plain_path_computes_the_same_and_more(measured: dict[str, methods.Measured], name: str) -> None:
    own = measured[name]
    own.refuse_difference(1e-4)
    for part in methods.PARTS:
        slow, fast = (sum(each.flops for each in record(work)) for work in own.works(part))
        assert 2 * slow > fast > 0  # of one client, and of two


def test_paths_that_differ_are_not_timed(measured: dict[str, methods.Measured]) -> None:
    with pytest.raises(UserError, match=r"promptfl: logits are .* from those of its plain path"):
        methods.Measured("promptfl", measured["promptfl"].rank, measured["zeroshot"].plain, 2).refuse_difference(1e-4)


def check(report: dict[str, Any], part: str) -> None:
    """Ratios follow from the times of the repeats, of which there are two, and from the operations."""
    first = report["methods"][0][part]
    for row in report["methods"]:
        own = row[part]
        assert own["clients"] == 2 and own["images_of_a_client"] == (2 if part == "step" else 6)
        over = [a / b for a, b in zip(own["seconds"], first["seconds"], strict=True)]
        assert own["time_over_pfedmma"] == pytest.approx(2 / sum(1 / ratio for ratio in over))
        assert own["flop_over_pfedmma"] == pytest.approx(own["flop"] / first["flop"])
        assert own["slower_than_its_arithmetic"] == pytest.approx(own["time_over_pfedmma"] / own["flop_over_pfedmma"])
        gain = [2 * a / b for a, b in zip(own["plain_seconds"], own["seconds"], strict=True)]
        assert own["speedup_over_plain"] == pytest.approx(sum(gain) / 2)
    assert first["time_over_pfedmma"] == first["flop_over_pfedmma"] == 1.0


def test_a_small_run(tmp_path: Path) -> None:
    done = run("methods.py", *SMALL, "--methods", "promptfl,fedmgp", "--json", str(tmp_path / "report.json"))
    report = report_of(done)
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in report["methods"]] == ["pfedmma", "promptfl", "fedmgp"]
    found = {row["method"]: (row["trained_parameters"], row["up_bytes"], row["down_bytes"]) for row in report["methods"][1:]}
    assert found == BYTES
    for part in ("step", "evaluation"):
        check(report, part)
        assert f"{part}, " in done.stdout
    assert report["date"] and report["peak_flop_per_s"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--methods", "fedmpg"), "fedmgp"), (("--parts", "steps"), "--parts: "), (("--images", "0"), "--images: 0")],
)
def test_bad_options_end_it_with_one_line(options: tuple[str, str], words: str) -> None:
    one_sentence(run("methods.py", "--model", "tiny", "--device", "cpu", *options), words)
