"""The programs that read a finished run: evaluate and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfedmma import train
from pfedmma.evaluate import main as evaluate
from pfedmma.report import main as report
from pfedmma.system.errors import UserError
from tests.support import small


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of two methods, evaluated at the end on few images."""
    folder = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        for method in ("pfedmma", "zeroshot"):
            train.main(small.settings(folder / method, "evaluation.every=2", f"method.name={method}"))
    return {method: folder / method for method in ("pfedmma", "zeroshot")}


def summary(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


def test_evaluate_repeats_the_last_evaluation(runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    small.few_images(monkeypatch)
    before = {path.name: path.read_bytes() for path in runs["pfedmma"].iterdir() if path.is_file()}
    evaluate([str(runs["pfedmma"])])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    wanted = summary(runs["pfedmma"])
    assert result["round"] == 2 and result["split"] == "test"
    assert result["accuracy"] == pytest.approx(wanted["accuracy"]) and result["zero_shot"] == pytest.approx(wanted["zero_shot"])
    assert [row["local"] for row in result["per_client"]] == pytest.approx([row["local"] for row in wanted["per_client"]])
    assert before == {path.name: path.read_bytes() for path in runs["pfedmma"].iterdir() if path.is_file()}  # the run is only read


def test_evaluate_refuses_another_run(runs: dict[str, Path]):
    with pytest.raises(UserError, match=r"method\.dim \(was 32, is 8\)"):
        evaluate([str(runs["pfedmma"]), "method.dim=8"])
    with pytest.raises(UserError, match="holds no run"):
        evaluate([str(runs["pfedmma"].parent)])


def test_zeroshot_is_its_own_reference(runs: dict[str, Path]):
    result = summary(runs["zeroshot"])
    assert result["accuracy"] == pytest.approx(result["zero_shot"])
    assert result["trained_parameters"] == 0 and result["comm"]["uplink_bytes"] == 0 and result["comm"]["payload_bytes"] == 0


def test_report_shows_the_runs_side_by_side(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report([str(runs["pfedmma"]), str(runs["zeroshot"]), "--markdown", str(tmp_path / "table.md")])
    out, text = capsys.readouterr().out, (tmp_path / "table.md").read_text()
    result = summary(runs["pfedmma"])
    assert out.count("zeroshot") == 1  # once, as the reference
    for shown in (out, text, (runs["pfedmma"].parent / "report.html").read_text()):
        assert f"{result['accuracy']['local']:.2f}" in shown and f"{result['zero_shot']['hm']:.2f}" in shown and "12.7 kB" in shown


def test_report_of_an_unfinished_run_says_how_to_finish_it(runs: dict[str, Path], tmp_path: Path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match="not finished"):
        report([str(tmp_path)])
    with pytest.raises(UserError, match="holds no run"):
        report([str(tmp_path / "none")])
