"""A round whose exchange fails leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from pfedmma.comm.ledger import EXCHANGE
from pfedmma.comm.world import World
from pfedmma.system.errors import RankFailure
from pfedmma.train import main
from tests.support import small


def test_no_result_is_written_from_a_failed_collective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a row of metrics, and the checkpoint before stays."""
    real, exchanges = World.sum, []

    def failing(world: World, flat: Tensor, purpose: str) -> Tensor:
        if purpose == EXCHANGE:
            exchanges.append(flat)
            if len(exchanges) == 2:
                raise RankFailure("rank 0 waited in 'exchange' for rank 1")
        return real(world, flat, purpose)

    monkeypatch.setattr(World, "sum", failing)
    run = tmp_path / "run"
    with pytest.raises(RankFailure, match="for rank 1"):
        main(small.settings(run, "checkpoint.every=1"))
    assert [row["round"] for row in small.metrics(run)] == [1]
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["round-000001"] and not (run / "summary.json").exists()
