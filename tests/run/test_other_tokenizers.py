"""A whole run on a model with a tokenizer of its own, as SigLIP has: trained, summed up, exported, and asked about a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image

from pfedmma import export, predict, train
from pfedmma.cost import __main__ as cost
from pfedmma.records.folder import RunFolder
from tests.support.timm_clip import Words, siglip

SETTINGS = (
    "backbone.name=ViT-B-16-SigLIP", "backbone.pretrained=none", "backbone.precision=fp32", "data.clients=2", "data.shots=1",
    "method.dim=4", "method.blocks=2", "federation.rounds=1", "federation.local_epochs=1",
)  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's model of that name is a small one, and its tokenizer needs no files of a hub."""
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **options: siglip())
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *args, **options: Words())


def test_a_run_ends_in_its_summary_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, picture = tmp_path / "run", tmp_path / "a.png"
    train.main([*SETTINGS, f"run_dir={run}"])
    summary = RunFolder(run).read_summary()
    assert summary.accuracy is not None and list(summary.alternatives) == ["all adapters"]  # a prompt there is none
    export.main([str(run), "--client", "0", "--out", str(tmp_path / "client.pt")])
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture)
    predict.main([str(run), str(picture), "--client", "0"])
    assert "a.png" in capsys.readouterr().out


def test_what_cannot_run_on_it_is_left_out_of_its_costs(capsys: pytest.CaptureFixture[str]) -> None:
    cost.main(["--methods", "all", "--backbone", "ViT-B-16-SigLIP", "--no-step"])
    shown = capsys.readouterr()
    assert "pfedmma" in shown.out and "promptfl" not in shown.out
    assert "promptfl" in shown.err and "another" in shown.err
