"""What a resumed run compares besides its settings and its data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pfedmma.config import schema
from pfedmma.records.checkpoint.manifest import EARLIER
from pfedmma.run import recorder, resume
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small


def test_another_version_of_torch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(recorder.torch, "__version__", "1.0.0")
        main(small.settings(run, "federation.rounds=1"))
    main([f"resume={run}", "federation.rounds=2"])
    assert "run was made with torch 1.0.0, this is " in capsys.readouterr().err
    main([f"resume={run}", "federation.rounds=3"])
    assert "was made with torch" not in capsys.readouterr().err


def test_another_wire_is_another_run(tmp_path: Path) -> None:
    """The bytes of a run are the sum of what was sent in one dtype."""
    run = tmp_path / "run"
    main(small.settings(run, "federation.rounds=1"))
    with pytest.raises(UserError, match=r"of another configuration: distributed\.wire \(was fp32, is bf16\)$"):
        main([f"resume={run}", "federation.rounds=2", "distributed.wire=bf16"])


@pytest.mark.parametrize("setting", ["", "data.protocol=iid", "data.partition_file=who.json"])
def test_dirichlet_shares_of_the_first_version_are_warned_of(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = schema.load(None, ["data.protocol=dirichlet", *filter(None, [setting])])
    saved = SimpleNamespace(format=EARLIER, progress=SimpleNamespace(torch_version=None))
    resume._warn_of_another_version(SimpleNamespace(config=config), saved)
    said = capsys.readouterr().err
    assert bool(said) == (not setting)
    if said:
        assert "0.1.0, which rounded Dirichlet shares otherwise" in said


def test_rounds_of_a_later_version_are_left_with_all_that_lies_beside_them(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = small.settings(run, "federation.rounds=1", "checkpoint.every=0")
    main(settings)
    row = small.metrics(run)[0] | {"format": 99, "version": "9.9.9"}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (run / "summary.json").unlink()  # that version has gone on with it
    (run / "config.yaml").write_text((run / "config.yaml").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"is of format 99, written by pfedmma 9\.9\.9"):
        main([*settings, "resume=auto"])
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
