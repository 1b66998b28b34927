"""``evaluation.select``: which round's accuracy a run reports, on any number of ranks, after a pause, and in what is made of the run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pfedmma import evaluate, export, predict
from pfedmma.accuracy.selection import Best, better
from pfedmma.config import schema
from pfedmma.engine import evaluation
from pfedmma.records.checkpoint import manifest
from pfedmma.records.rows import Accuracy
from pfedmma.records.selected import Selected
from pfedmma.report import main as report
from pfedmma.run.assembly import validation_of
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small, specimens
from tests.support.ranks import run_ranks, train, values_of
from tests.support.reported import Page

SETTINGS = ["backbone.pretrained=auto", "federation.rounds=4", "evaluation.every=1", "checkpoint.every=1", "optimizer.lr=0.2"]
SETTINGS += ["checkpoint.keep=1"]
VAL, TEST = "evaluation.select=best_val", "evaluation.select=best_test"


# By hand.


def test_the_best_of_some_rounds() -> None:
    """Validation HM 50, 70, 60; test Local 90, 80, 90: of equal ones the later, as in the released code."""
    tables = [torch.full((2, 4), float(round_)) for round_ in range(3)]
    val, test = None, None
    for round_, (hm, local) in enumerate([(50.0, 90.0), (70.0, 80.0), (60.0, 90.0)]):
        val = better(val, "best_val", round_, Accuracy({"hm": hm, "local": 0.0}), tables[round_])
        test = better(test, "best_test", round_, Accuracy({"hm": 0.0, "local": local}), tables[round_])
    assert isinstance(val, Best) and isinstance(test, Best)
    assert (val.selected.round, val.selected.split, val.selected.score, val.selected.value) == (1, "val", "hm", 70.0)
    assert (test.selected.round, test.selected.split, test.selected.score, test.selected.value) == (2, "test", "local", 90.0)
    assert val.table is tables[1] and test.table is tables[2]
    assert "optimistic" in str(test.selected) and "optimistic" not in str(val.selected)


@pytest.mark.parametrize("select", ["best_val", "best_test"])
@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("evaluation.every=0", "evaluation.select: {} chooses among the rounds that are evaluated; set evaluation.every to 1 or more"),
        ("evaluation.split=val", "evaluation.select: {} reports accuracies on the test split; leave out evaluation.split=val"),
    ],
)
def test_what_makes_no_sense_is_refused(select: str, more: str, says: str) -> None:
    with pytest.raises(UserError, match=says.format(select)):
        schema.load(None, [f"evaluation.select={select}", more])


def test_another_word_is_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.select: 'best' is not known; choose one of last, best_val, best_test"):
        schema.load(None, ["evaluation.select=best"])


# Whole runs.


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run by what it selects; ``best_val`` also on 2 ranks, and from 1 rank to 2 after round 2."""
    root = tmp_path_factory.mktemp("select")
    plans: dict[str, list[tuple[int, list[str]]]] = {"last": [(1, [])], "test": [(1, [TEST])], "val": [(1, [VAL])], "val-2": [(2, [VAL])]}
    plans["val-paused"] = [(1, [VAL, "federation.rounds=2"]), (2, [VAL])]
    for name, parts in plans.items():
        for number, (size, more) in enumerate(parts):
            arguments = small.settings(root / name, *SETTINGS, "resume=auto", *more)
            values_of(run_ranks(root / f"meet-{name}-{number}", size, train, arguments))
    return {name: root / name for name in plans}


def best_round(rows: list[dict[str, Any]], key: str, score: str) -> int:
    return max(rows, key=lambda row: (row[key][score], row["round"]))["round"]


@pytest.mark.parametrize(("name", "key", "score"), [("val", "validation", "hm"), ("test", "accuracy", "local")])
def test_the_summary_is_of_the_selected_round(runs: dict[str, Path], name: str, key: str, score: str) -> None:
    rows, summary, last = small.metrics(runs[name]), small.summary(runs[name]), small.metrics(runs["last"])
    assert [row["accuracy"] for row in rows] == [row["accuracy"] for row in last] and "validation" not in last[0]
    chosen = best_round(rows, key, score)
    by, split = {"val": ("best_val", "val"), "test": ("best_test", "test")}[name]
    value = rows[chosen - 1][key][score]
    assert summary["selected"] == {"round": chosen, "by": by, "score": score, "split": split, "value": value}
    assert summary["accuracy"] == rows[chosen - 1]["accuracy"]
    assert "selected" not in small.summary(runs["last"])


def round_2_is_best(best: Best | None, by: str, round_: int, judged: Accuracy, table: torch.Tensor) -> Best:
    """In place of `better`, so that no test depends on how a run happens to go."""
    return Best(Selected(round_, by, "local", "test", 88.0), table) if best is None or round_ == 2 else best


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of four rounds, in this process, which reports the second."""
    small.few_images(monkeypatch, train=8)
    monkeypatch.setattr(evaluation, "better", round_2_is_best)
    main(small.settings(tmp_path / "run", *SETTINGS, TEST))
    return tmp_path / "run"


def test_accuracies_by_client_are_those_of_the_selected_round(second: Path) -> None:
    summary, rows = small.summary(second), small.metrics(second)
    assert summary["selected"]["round"] == 2 and summary["accuracy"] == rows[1]["accuracy"] != rows[3]["accuracy"]
    for column in ("local", "base", "novel"):
        values = [client[column] for client in summary["per_client"]]
        assert sum(values) / len(values) == pytest.approx(rows[1]["accuracy"][column])


@pytest.mark.parametrize("other", ["val-2", "val-paused"])
def test_the_same_on_other_ranks_and_after_a_pause(runs: dict[str, Path], other: str) -> None:
    one, two = small.summary(runs["val"]), small.summary(runs[other])
    assert two["selected"] == pytest.approx(one["selected"]) and two["accuracy"] == pytest.approx(one["accuracy"])
    for row, same in zip(small.metrics(runs["val"]), small.metrics(runs[other]), strict=True):
        assert same["validation"] == pytest.approx(row["validation"])
    for row, same in zip(one["per_client"], two["per_client"], strict=True):
        assert [same[name] for name in ("local", "base", "novel")] == pytest.approx([row[name] for name in ("local", "base", "novel")])


def test_validation_accuracies_are_those_of_the_validation_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch, train=8, val=2)
    more = ["federation.rounds=2", "data.clients=3"]
    main(small.settings(tmp_path / "both", *SETTINGS, *more, VAL))
    main(small.settings(tmp_path / "val", *SETTINGS, *more, "evaluation.split=val"))
    rows, wanted = small.metrics(tmp_path / "both"), small.metrics(tmp_path / "val")
    assert [row["validation"] for row in rows] == [row["accuracy"] for row in wanted]
    assert rows[0]["validation"] != rows[0]["accuracy"]


def test_a_finished_run_that_goes_on_with_nothing_to_do_reports_the_same(second: Path) -> None:
    before = small.summary(second)
    main([f"resume={second}"])
    after = small.summary(second)
    assert (after["selected"], after["accuracy"], after["per_client"]) == (before["selected"], before["accuracy"], before["per_client"])


def test_another_way_of_selecting_is_refused_on_resume(second: Path) -> None:
    """But for the last, which needs no rounds before it."""
    says = r"evaluation\.select: the rounds of .* so far were made with best_test, and not compared as best_val asks; go on with best_test"
    with pytest.raises(UserError, match=says):
        main([f"resume={second}", "federation.rounds=5", VAL])
    main([f"resume={second}", "federation.rounds=5", "evaluation.select=last"])
    assert "selected" not in small.summary(second)
    assert small.summary(second)["accuracy"] == small.metrics(second)[-1]["accuracy"]
    with pytest.raises(UserError, match=says.replace("best_test", "last").replace("best_val", "best_test")):
        main([f"resume={second}", "federation.rounds=6", TEST])


def test_a_partition_file_and_data_without_validation_are_refused() -> None:
    with_val, asked = specimens.source(), ["evaluation.select=best_val", "data.clients=3", "data.shots=2"]
    (found,) = validation_of(schema.load(None, asked), with_val)
    assert {images.split for images in found.sets().values()} == {"val"}
    assert validation_of(schema.load(None, asked[1:]), with_val) == []
    with pytest.raises(UserError, match=r"best_val needs validation images of each client, of which data\.partition_file says nothing"):
        validation_of(schema.load(None, [*asked, "data.partition_file=who.json"]), with_val)
    without = {name: split for name, split in with_val.splits.items() if name != "val"}
    with pytest.raises(UserError, match=r"best_val needs a validation split, which toy does not have; use last"):
        validation_of(schema.load(None, asked), dataclasses.replace(with_val, splits=without))


# What is made of the run.


def test_the_checkpoint_of_the_selected_round_stays_and_is_offered(
    second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """evaluate, export and predict take the newest one, and say that the run reports another; --round takes that."""
    root, rows = second / "checkpoints", small.metrics(second)
    assert manifest.rounds(root) == [4, 2]  # checkpoint.keep=1
    says = f"this is round 4, the newest in {root}; the run reports round 2, which has the best Local on the test split, 88.00 %"
    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    client = [str(second), "--client", "1"]
    commands = {
        "evaluate": (evaluate.main, [str(second)]),
        "export": (export.main, [*client, "--out", str(tmp_path / "client.safetensors")]),
        "predict": (predict.main, [*client, str(tmp_path / "picture.png")]),
    }
    for name, (command, words) in commands.items():
        for more, round_ in (([], 4), (["--round", "2"], 2)):
            capsys.readouterr()
            command([*words, *more])
            told = capsys.readouterr()
            assert (says in told.err and "--round 2 takes it" in told.err) == (round_ == 4)
            assert f"after round {round_}" in told.out
            if name == "evaluate":
                assert json.loads(told.out.splitlines()[-1])["accuracy"] == rows[round_ - 1]["accuracy"]
        with pytest.raises(UserError, match=r"--round: .* has no good checkpoint of round 3; there are those of 2, 4$"):
            command([*words, "--round", "3"])
    shutil.rmtree(manifest.folder_of(root, 2))
    capsys.readouterr()
    export.main(commands["export"][1])
    assert "no checkpoint of that round is kept" in capsys.readouterr().err


def test_evaluate_may_test_another_split(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the run selects by."""
    small.few_images(monkeypatch, train=8)
    evaluate.main([str(runs["val"]), "evaluation.split=val"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["split"], result["round"]) == ("val", 4)
    assert result["accuracy"] == pytest.approx(small.metrics(runs["val"])[-1]["validation"])


def test_the_report_says_which_round(runs: dict[str, Path], tmp_path: Path) -> None:
    report([str(runs["test"]), str(runs["last"]), "--html", str(tmp_path / "page.html")])
    text = Page.from_file(tmp_path / "page.html").text
    chosen = small.summary(runs["test"])["selected"]["round"]
    assert text.count(f"round {chosen}, which has the best Local on the test split") == 1 and "optimistic" in text
