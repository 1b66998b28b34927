"""The cost model: the meta device counts what a CPU executes, a report adds up, and wrong options end in a sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedmma.clip.stems import StemCache
from pfedmma.cost.as_on_gpu import as_on_gpu
from pfedmma.methods.registry import NAMES
from pfedmma.system.errors import UserError
from tests.benchmarks.programs import LIMIT, one_sentence, report_of, run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import arithmetic
import roofline
from one_rank import OneRank, Setting
from operators import GROUPS, Operator, record

pytestmark = pytest.mark.timeout(LIMIT)
CLIENTS = 3
SMALL = ("--model", "tiny", "--batch", "2", "--classes", "4", "--images", "4")


def rank(device: str, method: str = "pfedmma", precision: str = "fp32") -> OneRank:
    return OneRank(Setting("tiny", method, precision, batch=2, classes=4, images=5), torch.device(device))


def step(device: str, method: str) -> list[Operator]:
    with as_on_gpu():
        return record(rank(device, method).step(CLIENTS))


def by_product(operators: list[Operator]) -> list[tuple[int, int]]:
    """(operations, bytes) of every matrix product in order; of attention, whose kernels differ between devices, the operations alone."""
    kinds = {"products": lambda each: (each.flops, each.bytes), "attention": lambda each: (each.flops, 0)}
    return [kinds[each.group](each) for each in operators if each.group in kinds]


@pytest.mark.parametrize("method", NAMES)
def test_the_meta_step_counts_what_a_cpu_executes(method: str) -> None:
    found, real = step("meta", method), step("cpu", method)
    assert by_product(found) == by_product(real) and sum(each.flops for each in found) > 0
    assert {each.group for each in found} == {each.group for each in real}


@pytest.mark.parametrize("together", [1, 2])
def test_the_meta_evaluation_counts_what_a_cpu_executes(together: int) -> None:
    found = []
    for device in ("meta", "cpu"):
        stems = StemCache(float("inf"))
        with as_on_gpu():
            work = rank(device).evaluation(CLIENTS, together, stems)
            found.append([by_product(record(work)), by_product(record(work))])
    assert found[0] == found[1]
    first, later = (sum(flops for flops, _ in products) for products in found[0])
    assert 0 < later < first, "what the frozen blocks make of the images is kept"


def test_a_step_executes_what_is_necessary_and_the_scores_once_more() -> None:
    with as_on_gpu():
        one = rank("meta")
        found = record(one.step(CLIENTS))
        shapes = arithmetic.towers(one.backbone, one.method.spec, one.backbone.prompts(one.template, one.base))
    again = sum(each.flops for each in found if each.group == "attention" and "backward" in each.name) // 5
    assert sum(each.flops for each in found) - again == sum(arithmetic.training_step(*shapes, CLIENTS, 2, 4).values())


def test_mixed_precision_is_counted() -> None:
    with as_on_gpu():
        found = record(rank("meta", precision="bf16").step(CLIENTS))
    assert {each.group for each in found} == set(GROUPS)
    products = [each.precision for each in found if each.group == "products"]
    assert products.count("bf16") > 0.8 * len(products), "the logits and the patch embedding's weights stay in fp32"


def test_kernels_of_this_project_move_less() -> None:
    found = []
    for fused in (True, False):
        with as_on_gpu(fused):
            found.append(record(rank("meta", precision="bf16").step(CLIENTS)))
    (flops, nbytes), (same, more) = ((sum(each.flops for each in own), sum(each.bytes for each in own)) for own in found)
    assert flops == same and nbytes < more and len(found[0]) < len(found[1])


def check_report(report: dict[str, Any]) -> None:
    """Groups add up to the step, and times to rounds."""
    whole = report["step"]
    assert tuple(whole["groups"]) == GROUPS
    for name in ("operators", "launches", "flop", "bytes", "busy_s"):
        assert sum(row[name] for row in whole["groups"].values()) == pytest.approx(whole[name])
    assert whole["necessary_flop_per_s"] == pytest.approx(whole["necessary_flop"] / whole["seconds"])
    for row in report["rounds"]:
        assert row["round_s"] == row["training_s"] + row["exchange_s"]
        assert 0 < row["later_evaluation_s"] < row["first_evaluation_s"]
    assert report["modelled_device"]["source"] and report["modelled_device"]["efficiency"] and report["date"]


def test_a_gpu_that_is_not_at_hand() -> None:
    done = run("roofline.py", *SMALL, "--device", "h100", "--clients", "5", "--together", "2", "--steps", "3", "--ranks", "2,1,4")
    report = report_of(done)
    check_report(report)
    assert all(group in done.stdout for group in GROUPS) and "counted" in done.stdout and "modelled" in done.stdout
    one, two, four = report["rounds"]
    assert [(row["ranks"], row["clients_of_fullest_rank"]) for row in report["rounds"]] == [(1, 5), (2, 3), (4, 2)]
    assert four["training_s"] == pytest.approx(3 * four["step_s"]), "one pass of two clients"
    assert two["training_s"] < one["training_s"] and one["exchange_s"] == 0.0 < two["exchange_s"]
    assert report["step"]["seconds"] == pytest.approx(report["step"]["busy_s"]), "a graph, which the host need not launch"
    assert report["checks"] == []


def test_a_step_of_many_clients_is_launched_by_the_host() -> None:
    done = run("roofline.py", *SMALL, "--device", "h100", "--clients", "7", "--together", "7", "--ranks", "1")
    step = report_of(done)["step"]
    assert step["seconds"] >= 0.999 * max(step["busy_s"], step["host_s"]) > step["busy_s"]


def test_this_cpu_is_measured_beside_the_model(tmp_path: Path) -> None:
    done = run("roofline.py", *SMALL, "--device", "cpu", "--repeats", "2", "--json", str(tmp_path / "report.json"))
    report = report_of(done)
    check_report(report)
    assert (tmp_path / "report.json").is_file() and report["modelled_device"]["source"] == "measured in this run"
    for found in report["checks"]:
        assert len(found["measured_s"]) == 2 and min(found["measured_s"]) > 0
        assert found["measured_over_modelled"] == pytest.approx(sum(found["measured_s"]) / 2 / found["modelled_s"])
        assert sum(row["modelled_s"] for row in found["groups"].values()) == pytest.approx(found["modelled_s"])
        assert found["groups"]["products"]["measured_s"] > 0 and found["spread"] >= 0
    assert [found["name"] for found in report["checks"]] == ["local step", "evaluation"]
    assert report["checks"][0]["meta_flop"] == report["checks"][0]["flop"] == report["step"]["flop"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ranks", "many"), "--ranks: 'many' is no list"),
        (("--ranks", "0,1"), "--ranks: 0 ranks"),
        (("--clients", "3", "--participants", "4"), "--participants: 4 of 3"),
        (("--device", "cpu", "--precision", "tf32"), "--precision: tf32"),
        (("--batch", "0"), "--batch: 0 is too small"),
    ],
)
def test_wrong_options_are_refused(options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["roofline.py", *options])
    with pytest.raises(UserError, match=words):
        roofline.with_defaults(roofline.arguments())


def test_a_wrong_option_ends_in_a_sentence() -> None:
    one_sentence(
        run("roofline.py", "--model", "tiny", "--classes", "300"), "--classes: there are names for 250 classes at most, not for 300"
    )
