"""What is not finite becomes no state of the server, is not saved, and is said where it arises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pfedmma import train
from pfedmma.comm.world import World
from pfedmma.methods import registry
from pfedmma.methods.base import MEAN, POOL, Method
from pfedmma.records.checkpoint import write
from pfedmma.server.rules import ServerRules, Uploads
from pfedmma.server.server import Server
from pfedmma.stack.layout import Layout
from pfedmma.system.errors import RankFailure, UserError
from tests.support import small

ONE_RANK = World(0, 1, torch.device("cpu"))
TOO_LARGE = 1e5  # for fp16


@dataclass(frozen=True)
class Far(Method):
    """Exchanges a number that fp32 holds and fp16 does not."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"far": (2,)}

    @property
    def exchange(self) -> dict[str, str]:
        return {"far": MEAN}

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"far": torch.full((2,), TOO_LARGE)}


@pytest.mark.parametrize("rule", [MEAN, POOL])
def test_an_overflow_of_the_wire_is_named_and_leaves_the_server_as_it_was(rule: str) -> None:
    server = Server(Layout({"far": (2,)}, {"far": rule}), {"shared": torch.ones(2)}, ONE_RANK, ServerRules(wire="fp16"))
    uploads = Uploads(3, [0, 1], [1, 1], [0, 1], torch.full((2, 2), TOO_LARGE))
    with pytest.raises(UserError, match=r"^the exchange of round 3 gave numbers .* distributed.wire=fp16; set distributed.wire=fp32$"):
        server.round(uploads)
    assert server.shared.tolist() == [1.0, 1.0] and not server.pool.rows


def test_an_update_that_overflows_is_refused() -> None:
    rules = ServerRules(update=lambda state, mean, uploads: {"shared": mean / 0.0})
    server = Server(Layout({"far": (2,)}, {"far": MEAN}), {"shared": torch.ones(2)}, ONE_RANK, rules)
    with pytest.raises(UserError, match=r"^the exchange of round 1 gave numbers that are not finite; lower optimizer.lr$"):
        server.round(Uploads(1, [0], [1], [0], torch.ones(1, 2)))
    assert server.shared.tolist() == [1.0, 1.0]


def test_a_run_ends_in_the_round_of_the_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.REGISTERED, "far", registry.Entry("far", lambda _, backbone: Far(backbone)))
    settings = small.settings(tmp_path / "run", "method.name=far", "checkpoint.every=1", "optimizer.weight_decay=0")
    settings = [setting for setting in settings if not setting.startswith("method.scale")]
    with pytest.raises(UserError, match=r"^the exchange of round 1 .*distributed\.wire=fp16"):
        train.main([*settings, "distributed.wire=fp16"])
    assert not (tmp_path / "run").exists()
    train.main(settings)
    assert len(small.metrics(tmp_path / "run")) == 2


def test_what_is_not_finite_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever made it: the checkpoint before stays."""
    real: Any = write._client_shards

    def spoilt(*given: Any) -> Any:
        for tensors in real(*given):
            yield {name: torch.full_like(tensor, torch.inf) for name, tensor in tensors.items()}

    train.main(small.settings(tmp_path / "run", "federation.rounds=1"))
    monkeypatch.setattr(write, "_client_shards", spoilt)
    with pytest.raises(RankFailure, match=r"private' holds numbers that are not finite, and is not saved; the checkpoint before stays"):
        train.main([f"resume={tmp_path / 'run'}", "federation.rounds=2"])
    assert sorted(small.final_tensors(tmp_path / "run"))
