"""What training leaves for the report: zero-shot accuracy of each client, also after a resume, and the sizes of alternatives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfedmma import train
from pfedmma.records.checkpoint import manifest as checkpoint_manifest
from pfedmma.report import main
from tests.support import small
from tests.support.reported import Page

MORE = ("federation.rounds=2", "evaluation.every=1", "checkpoint.every=1", "checkpoint.keep=2")


@pytest.fixture(scope="module", autouse=True)
def few_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    train.main(small.settings(folder, *MORE, "backbone.pretrained=auto"))
    return folder


def test_zero_shot_of_every_client_is_kept(run: Path):
    summary = small.summary(run)
    for name in ("local", "base", "novel"):
        values = [row["zero_shot"][name] for row in summary["per_client"]]
        assert sum(values) / len(values) == pytest.approx(summary["zero_shot"][name])
    local = [row["zero_shot"]["local"] for row in summary["per_client"]]
    assert len(set(local)) > 1 and min(local) == summary["zero_shot"]["local_worst"]


def test_it_survives_a_resume(run: Path, tmp_path: Path):
    again = shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(checkpoint_manifest.folder_of(again / "checkpoints", 2))
    train.main([f"resume={again}"])
    assert [row["zero_shot"] for row in small.summary(again)["per_client"]] == [
        row["zero_shot"] for row in small.summary(run)["per_client"]
    ]


def test_a_checkpoint_without_it_goes_on_and_the_report_says_so(run: Path, tmp_path: Path):
    old = shutil.copytree(run, tmp_path / "old")
    shutil.rmtree(checkpoint_manifest.folder_of(old / "checkpoints", 2))
    path = checkpoint_manifest.folder_of(old / "checkpoints", 1) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["progress"]["zero_shot_clients"], manifest["digest"]
    path.write_text(json.dumps(manifest | {"digest": checkpoint_manifest._digest(manifest)}))
    train.main([f"resume={old}"])
    after = small.summary(old)
    assert after["zero_shot"] == small.summary(run)["zero_shot"] and {row["zero_shot"] for row in after["per_client"]} == {None}
    main([str(old)])
    assert "not recorded in pfedmma" in Page.from_file(old / "report.html").text


def test_a_run_that_is_never_evaluated_has_none(tmp_path: Path):
    train.main(small.settings(tmp_path / "run", "evaluation.every=0", "federation.rounds=1"))
    assert {row["zero_shot"] for row in small.summary(tmp_path / "run")["per_client"]} == {None}
    main([str(tmp_path / "run")])
    assert "Nothing was evaluated" in Page.from_file(tmp_path / "run" / "report.html").text


@pytest.mark.parametrize("width", ["method.dim=8", "distributed.wire=bf16"])
def test_alternatives_are_what_those_methods_would_send(tmp_path: Path, width: str):
    made = {}
    for method in ("local", "fedavg_mma", "promptfl"):
        train.main(small.settings(tmp_path / method, f"method.name={method}", "federation.rounds=1", width))
        made[method] = small.summary(tmp_path / method)
    alternatives = made["local"]["alternatives"]
    assert alternatives == {
        "all adapters": made["fedavg_mma"]["bytes_per_client_round"],
        "one prompt": made["promptfl"]["bytes_per_client_round"],
    }
    assert alternatives == made["fedavg_mma"]["alternatives"]


def test_a_method_without_adapters_is_compared_with_adapters_as_they_are_by_default(tmp_path: Path):
    train.main(small.settings(tmp_path / "run", "method.name=promptfl", "method.blocks=99", "federation.rounds=1"))
    assert small.summary(tmp_path / "run")["alternatives"] == {"all adapters": 163_200, "one prompt": 1_024}


def test_the_page_of_a_real_run(run: Path):
    main([str(run), "--markdown", str(run / "report.md")])
    summary, page, text = small.summary(run), Page.from_file(run / "report.html"), (run / "report.md").read_text()
    for name in ("local", "base", "novel", "hm", "hm_base_novel", "local_worst", "local_std"):
        assert f"{summary['accuracy'][name]:.2f}" in page.text and f"{summary['accuracy'][name]:.2f}" in text
    last = small.metrics(run)[-1]
    assert f"pfedmma, round 2: {last['loss']:.4g}" in page.texts and f"pfedmma, round 2: {last['accuracy']['hm']:.4g}" in page.texts
    assert sum(value in ("gain", "loss") for name, value in page.attributes if name == "class") == 14  # a bar and a row for each
    made = summary["origin"]
    assert made["command"].startswith("python -m pfedmma.train ") and f"run_dir={run}" in made["command"]
    assert made["started"] <= made["finished"] and made["command"] in page.text and "(of its files)" not in page.text
    assert summary["versions"]["torch"] in page.text and "method.dim" in page.text and "163,200 B" in page.text
