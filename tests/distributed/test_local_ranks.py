"""Runs whose clients train otherwise than FedAvg's: 1 = 2 ranks, resumed = straight, and what a client answers with is what is exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pfedmma import evaluate, export
from pfedmma.records.checkpoint import manifest
from tests.support import small
from tests.support.ranks import run_ranks, train, values_of

RULES = {
    "scaffold": ["local.rule=scaffold", "optimizer.momentum=0", "local.trains=private_first", "federation.local_epochs=2"],
    "ditto": ["local.rule=ditto", "local.pull=0.5", "evaluation.every=2", "data.new_clients=0.25", "evaluation.new_clients_epochs=1"],
    "fine-tuned": ["local.rule=fedprox", "local.fine_tune_epochs=1", "evaluation.every=2"],
}
CLIENTS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each of 2 rounds on 1 rank, and again with the second round on 2 ranks: fine-tuned clients are so after the first one, too."""
    folder = tmp_path_factory.mktemp("local")
    for rule, more in RULES.items():
        for name, parts in {"1": [(1, 2)], "1-then-2": [(1, 1), (2, 2)]}.items():
            for size, rounds in parts:
                own = [*more, f"data.clients={CLIENTS}", f"federation.rounds={rounds}", "resume=auto", "federation.participation=0.5"]
                own += ["checkpoint.every=1", "method.dim=4"]
                meet = folder / f"meet-{rule}-{name}-{rounds}"
                values_of(run_ranks(meet, size, train, small.settings(folder / rule / name, *own)))
    return folder


@pytest.mark.parametrize("rule", RULES)
def test_the_same_run(runs: Path, rule: str) -> None:
    one, two = (runs / rule / name for name in ("1", "1-then-2"))
    small.assert_same_tensors(two, one)
    for row, other in zip(small.metrics(one), small.metrics(two), strict=True):
        assert other["clients"] == row["clients"] and other["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert all(other["comm"][key] == row["comm"][key] for key in ("payload_bytes", "uplink_bytes", "downlink_bytes"))
    last, others = small.metrics(one)[-1]["accuracy"], small.metrics(two)[-1]["accuracy"]
    assert others == (last and pytest.approx(last, rel=1e-5))
    assert small.summary(two).get("new_clients") == small.summary(one).get("new_clients")


def test_control_variates_are_counted_both_ways(runs: Path) -> None:
    rows, summary = small.metrics(runs / "scaffold" / "1"), small.summary(runs / "scaffold" / "1")
    each = 2 * 4 * summary["shared_parameters"]
    assert [row["comm"]["uplink_bytes"] for row in rows] == [row["comm"]["downlink_bytes"] for row in rows] == 2 * [2 * each]
    assert [(row["comm"]["payload_bytes"], row["comm"]["collectives"]) for row in rows] == 2 * [(each, 2)]
    assert summary["bytes_per_client_round"] == summary["bytes_down_per_client_round"] == each
    plain = small.summary(runs / "ditto" / "1")
    assert plain["bytes_per_client_round"] == 4 * plain["shared_parameters"] == each // 2
    tensors = small.final_tensors(runs / "scaffold" / "1")
    trained = {int(name.partition(".")[0]) for name in tensors if name.endswith(".control") and name != "server.control"}
    assert trained == {client for row in rows for client in row["clients"]}
    assert all(tensors[f"{client}.control"].abs().max() > 0 for client in trained)


@pytest.mark.parametrize("rule", ["ditto", "fine-tuned"])
def test_a_client_answers_with_its_personal_model(
    runs: Path, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs / rule / "1"
    tensors, kept = small.final_tensors(run), manifest.read_manifest(run / "checkpoints" / "round-000002")
    personal = {int(name.partition(".")[0]): tensor for name, tensor in tensors.items() if name.endswith(".personal")}
    trained = {client for row in small.metrics(run) for client in row["clients"]}
    assert set(personal) == (trained if rule == "ditto" else set(range(CLIENTS))), "all are fine-tuned, whether or not they took part"
    client = max(trained)
    export.main([str(run), "--client", str(client), "--out", str(tmp_path / "client.safetensors")])
    exported, wanted = load_file(tmp_path / "client.safetensors"), kept.layout.views(personal[client])
    assert exported.keys() == wanted.keys() and all(torch.equal(exported[name], wanted[name]) for name in wanted)
    moved = personal[client][: kept.layout.exchanged_size] - tensors["server.shared"]
    assert moved.abs().max() > 1e-4
    capsys.readouterr()
    small.few_images(monkeypatch, **small.RANKS_DRAW)
    evaluate.main([str(run)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["accuracy"] == pytest.approx(small.summary(run)["accuracy"])
