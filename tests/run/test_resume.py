"""What a resumed run compares besides its settings and its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.run import recorder
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
