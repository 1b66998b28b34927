"""Bytes that are said before a run are those that its ledger counts, and that its checkpoint has of each client."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from pfedmma.config import schema
from pfedmma.cost import memory
from pfedmma.cost.exchange import Exchange, Rounds
from pfedmma.cost.step import backbone_of_shapes
from pfedmma.methods import registry
from pfedmma.train import main
from tests.support import small
from tests.support.stacks import new_method


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ([], Rounds(10, 10, 10, 50)),
        (["federation.participation=0.25", "federation.rounds=3"], Rounds(10, 2, 2, 3)),
        (["federation.participation=0.25", "federation.first_round=all"], Rounds(10, 10, 2, 50)),
        (["federation.sampling=poisson", "federation.participation=0.25"], Rounds(10, 2.5, 2.5, 50)),
        (["data.new_clients=0.2", "federation.participation=0.5"], Rounds(8, 4, 4, 50)),
    ],
)
def test_who_takes_part(settings: list[str], wanted: Rounds) -> None:
    assert Rounds.from_config(schema.load(None, settings), 10) == wanted


def test_a_run_by_hand() -> None:
    """Ten in round 1, two in each of the four others."""
    rounds = Rounds(10, 10, 2, 5)
    assert (rounds.uploads, rounds.later) == (18, 8)


def test_bytes_by_hand(tiny_clip: nn.Module) -> None:
    """S of 3 blocks, each 32 x 32 + 32 numbers; prompts, of which each of 5 clients reads those of the 4 others."""
    rounds = Rounds(5, 5, 5, 3)
    shared = Exchange(new_method(tiny_clip, dim=32, blocks=3), rounds, "fp32")
    assert (shared.up, shared.down, shared.payload()) == (3 * 1056 * 4, 3 * 1056 * 4, 3 * 1056 * 4)
    assert (shared.up_of_run, shared.down_of_run) == (15 * shared.up, 15 * shared.up)
    assert [shared.ring(ranks) for ranks in (1, 2, 8)] == [0.0, shared.up, 1.75 * shared.up]
    half = Exchange(shared.method, rounds, "bf16")
    assert (half.up, half.down_of_run) == (shared.up // 2, shared.down_of_run // 2)

    controlled = Exchange(shared.method, rounds, "fp32", controls=True)
    assert (controlled.up, controlled.down) == (2 * shared.up, 2 * shared.down)
    assert (controlled.up_of_run, controlled.down_of_run, controlled.payload()) == (30 * shared.up, 30 * shared.up, 2 * shared.up)

    pooled = Exchange(new_method(tiny_clip, name="pfedmoap"), rounds, "fp32")
    prompt = pooled.up
    assert pooled.down == prompt + 4 * prompt and pooled.payload() == prompt + 5 * prompt
    assert pooled.down_of_run == 5 * prompt + 2 * 5 * pooled.down, "nobody has anything to read in round 1"


POOLED = ["method.name=pfedmoap", "federation.participation=1"]
CONTROLLED = ["local.rule=scaffold", "optimizer.momentum=0", "distributed.wire=bf16"]


PERSONAL = ["local.rule=ditto", "optimizer.state=persist"]


@pytest.mark.parametrize("settings", [["method.name=pfedmma", "distributed.wire=bf16"], POOLED, CONTROLLED, PERSONAL])
@pytest.mark.parametrize("first", ["participation", "all"])
def test_a_real_run_moves_what_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], first: str) -> None:
    small.few_images(monkeypatch)
    given = small.settings(tmp_path / "run", *settings, f"federation.first_round={first}")
    main(given)
    config, summary, last = schema.load(None, given), small.summary(tmp_path / "run"), small.metrics(tmp_path / "run")[-1]
    backbone, _ = backbone_of_shapes(config.backbone)
    rounds, wire = Rounds.from_config(config, config.data.clients), config.distributed.wire
    method = registry.build(config.method, backbone)
    said = Exchange(method, rounds, wire, config.local.controls)
    assert (said.up, said.down) == (summary["bytes_per_client_round"], summary["bytes_down_per_client_round"])
    assert (said.up_of_run, said.down_of_run) == (summary["comm"]["uplink_bytes"], summary["comm"]["downlink_bytes"])
    assert said.payload() == last["comm"]["payload_bytes"]
    trained = {client for row in small.metrics(tmp_path / "run") for client in row["clients"]}
    kept = [tensor.nbytes for name, tensor in small.final_tensors(tmp_path / "run").items() if name.partition(".")[0].isdigit()]
    assert sum(kept) == len(trained) * memory.between_rounds(method, config), "what a checkpoint has of each client"
