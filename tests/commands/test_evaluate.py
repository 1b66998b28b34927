"""A run is tested again, and more is asked of it than it was trained to record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfedmma import evaluate, train
from tests.support import small


@pytest.mark.parametrize("method", ["pfedmma", "promptfl"])
def test_diagnostics_of_a_run_that_recorded_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    small.few_images(monkeypatch)
    run = tmp_path / "run"
    train.main(small.settings(run, "evaluation.every=1", "federation.rounds=1", f"method.name={method}", "backbone.pretrained=auto"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "CKA" not in capsys.readouterr().out
    evaluate.main([str(run), "evaluation.diagnostics=true"])
    out = capsys.readouterr().out
    result, recorded = json.loads(out.splitlines()[-1]), small.summary(run)
    found, reference = result["accuracy"].pop("diagnostics"), result["zero_shot"].pop("diagnostics")
    assert (result["accuracy"], result["zero_shot"]) == (recorded["accuracy"], recorded["zero_shot"])
    assert 0 < found["alignment_margin"] < 1 and 0 < found["modality_gap"] < 2 and 0 < found["ece"] < 100
    assert reference["shared_cka"] is None and (found["shared_cka"] is None) == (method == "promptfl")
    assert "CKA of S between clients" in out and f"{found['ece']:.2f}" in out and f"{reference['alignment_margin']:.4f}" in out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
