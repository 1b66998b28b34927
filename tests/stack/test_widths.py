"""Clients of unlike width: a padded one is the narrow one, numbers are averaged over those who have them, each sends its own bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import pfedmma
from pfedmma import evaluate
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.comm.world import World
from pfedmma.config import schema
from pfedmma.engine.cohort import PassWidth, train_cohort
from pfedmma.export import main as export
from pfedmma.server.mixed_widths import ByThoseWhoHaveIt
from pfedmma.server.rules import FEDAVG, Uploads
from pfedmma.server.server import Server
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.widths import Widths, assigned, leading, shares_of
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import mixed, small, stacks
from tests.support.ranks import run_ranks, train, values_of

CPU = torch.device("cpu")


# Settings --------------------------------------------------------------------------------------------------------------------------------


def test_shares_by_hand() -> None:
    """Half of seven is 3.5: the larger remainder, and of equal ones the smaller width, has one client more."""
    assert shares_of(["8:0.5", "32: 0.5"]) == {8: 0.5, 32: 0.5} and shares_of([]) == {}
    widths = assigned({8: 0.5, 32: 0.5}, 7, 0)
    assert sorted(widths) == list(range(7)) and sorted(widths.values()) == [8] * 4 + [32] * 3
    assert sorted(assigned({4: 0.2, 8: 0.3, 16: 0.5}, 10, 1).values()) == [4] * 2 + [8] * 3 + [16] * 5
    assert widths == assigned({8: 0.5, 32: 0.5}, 7, 0) and len({str(assigned({8: 0.5, 32: 0.5}, 7, seed)) for seed in range(9)}) > 1


@pytest.mark.parametrize("given", ["method.dims=8:0.5,32:0.5", "method.dims={8: 0.5, 32: 0.5}"])
def test_however_they_are_written(given: str, tmp_path: Path) -> None:
    config = schema.load(None, [given])
    assert config.method.shares == {8: 0.5, 32: 0.5} and config.method.widest == 32
    file = tmp_path / "run.yaml"
    file.write_text("method:\n  dims: {8: 0.5, 32: 0.5}\n", encoding="utf-8")
    assert schema.load(file).method == config.method


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["method.dims=8:half,9:0.5"], "dims: '8:half' is no width and its share"),
        (["method.dims=8:0.5,32:0.6"], r"dims: the shares of all widths must be 1 together, not 1\.1"),
        (["method.dims=8:0.5,8:0.5"], "dims: each width stands there once"),
        (["method.dims=0:0.5,8:0.5"], "dims: must be at least 1"),
        (["method.dims=8:0.5,16:0.5", "method.dim=64"], "dims: the widest is 16, and dim is 64"),
        (["method.dims=8:0.5,16:0.5", "method.name=promptfl"], "dims: is about the adapters"),
    ],
)
def test_settings_that_cannot_be(given: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        schema.load(None, given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("server.robust=median", "wants the same numbers"),
        ("privacy.clip=1", "want the same numbers"),
        ("evaluation.new_clients_start=mean", "wants them alike in all"),
    ],
)
def test_what_needs_the_same_numbers_of_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, words: str) -> None:
    small.few_images(monkeypatch)
    with pytest.raises(UserError, match=rf"method\.dims: .*{words}"):
        main(small.settings(tmp_path / "run", "method.dims=3:0.5,8:0.5", "data.new_clients=0.3", given))
    assert not (tmp_path / "run").exists()


# Training --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_padded_client_in_a_mixed_stack_is_the_narrow_one_alone(tiny_clip: nn.Module, kind: str) -> None:
    optimizer = OptimizerConfig(kind, lr=0.01, eps=0.1)
    method, members = mixed.new_run(tiny_clip, optimizer)
    training, clients = stacks.new_training(method, optimizer), stacks.new_clients()
    begin = method.layout.views(members.states.gather([4], members.server.shared))
    trained = train_cohort(training, clients, members, 1, PassWidth(5))
    narrow = mixed.method_of(tiny_clip, mixed.NARROW)
    alone = stacks.new_training(narrow, optimizer)
    start = {name: begin[name][0][tuple(map(slice, shape))] for name, shape in narrow.shapes.items()}
    params = narrow.layout.pack(start)[None]
    loss = alone.train([clients[4]], params, None, 1)
    torch.testing.assert_close(trained.losses[4:], loss, rtol=1e-5, atol=1e-6)
    together = torch.cat([trained.uploads[4], members.states.own[4]])
    padded, wanted = method.layout.views(together), narrow.layout.views(params[0])
    for name, tensor in leading(padded, narrow.shapes).items():
        assert torch.equal(padded[name], tensor), f"{name} has something outside of its block"
        block = tensor[tuple(map(slice, narrow.shapes[name]))]
        torch.testing.assert_close(block, wanted[name], rtol=1e-4, atol=1e-6)
        assert (block - start[name]).abs().max() > 1e-5


# The server ------------------------------------------------------------------------------------------------------------------------------

LAYOUT = Layout({"s": (2, 2)}, {"s": "mean"})


def test_each_number_is_the_mean_of_those_who_have_it() -> None:
    """S of 2 x 2 and of 1 x 1: clients of 1, 2 and 3 images, of whom the last two are narrow; then the narrow ones alone."""
    widths = Widths.from_shapes({0: 2, 1: 1, 2: 1}, LAYOUT, {1: {"s": (1, 1)}, 2: {"s": (2, 2)}}, CPU)
    assert [widths.exchanged(client) for client in range(3)] == [4, 1, 1]
    rules = dataclasses.replace(FEDAVG, transforms=(ByThoseWhoHaveIt(widths),))
    server = Server(LAYOUT, {"shared": torch.full((4,), 7.0)}, World(0, 1, CPU), rules)
    rows = torch.tensor([[6.0, 1.0, 2.0, 3.0], [3.0, 0, 0, 0], [1.0, 0, 0, 0]])
    server.round(Uploads(1, [0, 1, 2], [1, 2, 3], [0, 1, 2], rows))
    assert server.shared.tolist() == pytest.approx([(6 + 2 * 3 + 3 * 1) / 6, 1, 2, 3])
    server.round(Uploads(2, [1, 2], [2, 3], [1, 2], rows[1:]))
    assert server.shared.tolist() == pytest.approx([(2 * 3 + 3 * 1) / 5, 1, 2, 3])


# Whole runs ------------------------------------------------------------------------------------------------------------------------------

RUN = ["method.dims=3:0.5,8:0.5", "method.scale=0.3", "federation.participation=0.6", "federation.rounds=2", "evaluation.every=2"]
RUN += ["local.rule=scaffold", "optimizer.momentum=0"]  # whose control variates travel as well, of each client as many as it is wide
BLOCKS = 3  # that the tiny CLIP adapts


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same on one rank and on two."""
    folder = tmp_path_factory.mktemp("mixed")
    for size in (1, 2):
        values_of(run_ranks(folder / f"meet-{size}", size, train, small.settings(folder / str(size), *RUN, "federation.batch_size=18")))
    return {size: folder / str(size) for size in (1, 2)}


def test_one_rank_is_two_ranks(runs: dict[int, Path]) -> None:
    small.assert_same_tensors(runs[2], runs[1])
    assert [row["comm"]["uplink_bytes"] for row in small.metrics(runs[1])] == [
        row["comm"]["uplink_bytes"] for row in small.metrics(runs[2])
    ]
    assert small.summary(runs[2])["accuracy"] == pytest.approx(small.summary(runs[1])["accuracy"], rel=1e-5)


def test_each_client_counts_its_own_bytes(runs: dict[int, Path]) -> None:
    widths = assigned({3: 0.5, 8: 0.5}, 7, 0)
    for row in small.metrics(runs[1]):
        numbers = sum(BLOCKS * (widths[i] ** 2 + widths[i]) for i in row["clients"])
        assert row["comm"]["uplink_bytes"] == row["comm"]["downlink_bytes"] == 2 * 4 * numbers
        assert row["comm"]["shared_parameters"] == 2 * BLOCKS * 72 and row["comm"]["payload_bytes"] == 2 * 4 * BLOCKS * 72


def test_evaluate_finds_the_same(runs: dict[int, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch, **small.RANKS_DRAW)
    evaluate.main([str(runs[1])])
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["per_client"] == small.summary(runs[1])["per_client"]


def test_a_client_is_exported_as_wide_as_it_is(runs: dict[int, Path], tmp_path: Path) -> None:
    widths, shared = assigned({3: 0.5, 8: 0.5}, 7, 0), small.final_tensors(runs[1])["server.shared"]
    for client in (next(i for i in widths if widths[i] == width) for width in (3, 8)):
        out = tmp_path / f"{client}.safetensors"
        export([str(runs[1]), "--client", str(client), "--out", str(out)])
        with safe_open(out, "pt") as file:
            assert file.metadata()["dim"] == str(widths[client])
            tensor: Tensor = file.get_tensor("shared.4.weight")
        assert tensor.shape == (widths[client],) * 2
        clip = create_model(BackboneConfig("tiny", "none"), seed=0)
        assert isinstance(pfedmma.load_adapter(clip, out), nn.Module)
        assert bool((shared == tensor[0, 0]).any())
