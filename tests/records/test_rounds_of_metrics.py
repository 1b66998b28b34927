"""A reader of metrics says what is wrong with their rounds, and rounds of two splits are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.evaluate import main as evaluate
from pfedmma.records.folder import RunFolder, odd_rounds
from pfedmma.report import main as report
from pfedmma.train import main
from tests.support import small


@pytest.mark.parametrize(
    ("rounds", "told"),
    [
        ([], ""),
        ([1, 2, 3], ""),
        ([1, 2, 2, 3], "has round 2 more than once"),
        ([1, 3], "lacks round 2"),
        ([2, 3], "lacks round 1"),
        ([2, 1], "has its rounds out of order"),
    ],
)
def test_rounds_stand_once_and_in_order(rounds: list[int], told: str) -> None:
    assert odd_rounds(rounds) == told


def test_a_report_on_mixed_rounds_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(small.settings(tmp_path / "run"))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join([*lines, lines[0], ""]))
    capsys.readouterr()
    report([str(tmp_path / "run"), "--no-html"])
    assert "metrics.jsonl has round 1 more than once; another run may have written there" in capsys.readouterr().err


def test_another_split_has_a_reference_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On resume zero-shot is measured on the new split, each row says its split, and curves hold rows of one."""
    small.few_images(monkeypatch, val=2, test=2)
    tested = ["evaluation.every=1", "data.clients=2", "backbone.pretrained=auto"]
    run = tmp_path / "run"
    main(small.settings(run, "federation.rounds=1", "evaluation.split=val", *tested))
    on_val = small.summary(run)
    main([f"resume={run}", "federation.rounds=2", "evaluation.split=test"])
    both = small.summary(run)
    main(small.settings(tmp_path / "other", "federation.rounds=2", "evaluation.split=test", *tested))
    wanted = small.summary(tmp_path / "other")
    assert both["zero_shot"] == wanted["zero_shot"] != on_val["zero_shot"]
    assert [client["zero_shot"] for client in both["per_client"]] == [client["zero_shot"] for client in wanted["per_client"]]
    assert both["accuracy"] == wanted["accuracy"]
    assert [row["split"] for row in small.metrics(run)] == ["val", "test"]
    rows = RunFolder(run).read_metrics()
    assert [row.tested_on("test").accuracy is None for row in rows] == [True, False]
    assert (on_val["split"], both["split"]) == ("val", "test")
    evaluate([str(run), "evaluation.split=val"])  # a reader changes nothing
    assert small.summary(run) == both
