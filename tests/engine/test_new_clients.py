"""Clients that come after the last round: what they start with, that each trains as if alone, what it costs, and that no other notices."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfedmma import evaluate, rng
from pfedmma.clip.loading import create_model
from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.engine import new_clients
from pfedmma.engine.new_clients import Group, starting, train_alone
from pfedmma.methods import registry
from pfedmma.run import display
from pfedmma.run.assembly import Run, assemble
from pfedmma.train import main
from tests.support import oracle, small
from tests.support.ranks import run_ranks, train, values_of
from tests.support.stacks import gathered, serve

# Far above the defaults, so that every tensor moves by far more than the tolerance; GELU, as ReLU's kink makes of a rounding a difference.
BASE = ("seed=3", "backbone.pretrained=none", "data.clients=5", "data.shots=2", "data.new_clients=0.4", "federation.batch_size=8")
BASE += ("method.dim=8", "method.scale=0.3", "method.blocks=3", "method.activation=gelu", "optimizer.lr=0.01")
SIZES = (5, 20)  # images of the two new clients: one step an epoch, and three
LENGTHS = [1, 3]


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch, train=8)


def new_run(*settings: str) -> Run:
    """Two new clients of unequal size among five, and a server that has moved away from where it began.

    Biases start away from 0, so that 1e-5 of their size is above the rounding errors of their gradients' long sums.
    """
    run = assemble(configuration.load(None, [*BASE, *settings]), World(0, 1, torch.device("cpu")))
    sizes = dict(zip([client.id for client in run.engine.clients if client.new], SIZES, strict=True))
    cut = [dataclasses.replace(c, train=c.train[: sizes.get(c.id)], labels=c.labels[: sizes.get(c.id)]) for c in run.engine.clients]
    run.engine.clients = tuple(cut)
    initial, shared = run.engine.states.initial, run.engine.server.shared
    initial += 0.1 * torch.randn(initial.shape, generator=rng.generator(0, "start"))
    serve(run.engine.members, shared + 0.1 * torch.randn(shared.shape, generator=rng.generator(0, "moved")))
    return run


def states_after(run: Run, first: int) -> dict[int, Tensor]:
    """What the new clients have after each of `LENGTHS` epochs [2, P]."""
    group = Group.from_engine(run.engine)
    assert [len(client.train) for client in group.own] == list(SIZES)
    kept = train_alone(group, starting(run.engine, group.ids), first, LENGTHS)
    return {k: states.gather_to_answer(group.ids, run.engine.server.shared) for k, states in kept.items()}


# Each trains as if alone.


def plainly_trained(run: Run, clip: nn.Module, client: Any, start: Tensor, epochs: int, frozen: bool) -> dict[str, Tensor]:
    """By the oracle: one client, one torch optimizer, round 0."""
    config, layout = run.config, run.engine.training.layout
    model = oracle.Adapters(clip, config.method.blocks, config.method.dim, config.method.scale, config.method.activation)
    model.load_state_dict(layout.views(start))
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(not (frozen and name in layout.exchange))
    alone = dataclasses.replace(config, federation=dataclasses.replace(config.federation, local_epochs=epochs))
    tokens = oracle.prompts(clip, run.federated.template, run.federated.base.classes)
    oracle.train(clip, model, client, run.engine.training.batches.pixels, tokens, alone, 0)
    return model.state_dict()


@pytest.mark.parametrize(
    ("method", "frozen", "more"),
    [
        ("local", False, ()),
        ("pfedmma", False, ()),
        ("pfedmma", True, ()),
        ("pfedmma", True, ("optimizer.name=adamw", "optimizer.lr=0.005", "optimizer.eps=0.1", "optimizer.weight_decay=0.1")),
        ("pfedmma", False, ("optimizer.state=persist", "federation.clients_per_pass=1", "data.augment=crop")),
    ],
)
def test_a_new_client_trains_as_if_alone(method: str, frozen: bool, more: tuple[str, ...]) -> None:
    run = new_run(f"method.name={method}", *more)
    clip, layout = create_model(run.config.backbone, run.config.seed), run.engine.training.layout
    found = states_after(run, layout.exchanged_size if frozen else 0)
    for k in LENGTHS:  # the shorter one is no training of its own
        for client, got in zip([c for c in run.engine.clients if c.new], found[k], strict=True):
            (start,) = gathered(run.engine.members, [client.id])
            wanted = plainly_trained(run, clip, client, start, k, frozen)
            for name, tensor in layout.views(got).items():
                kept = frozen and name in layout.exchange
                assert torch.equal(tensor, layout.views(start)[name]) == kept, name
                torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=2e-6 * float(wanted[name].abs().max()))


def test_the_shorter_training_is_the_beginning_of_the_longer() -> None:
    run = new_run()
    group = Group.from_engine(run.engine)
    short, long = (train_alone(group, starting(run.engine, group.ids), 0, lengths)[1] for lengths in ([1], [1, 2, 4]))
    shared = run.engine.server.shared
    assert torch.equal(short.gather_to_answer(group.ids, shared), long.gather_to_answer(group.ids, shared))


def test_memory_that_runs_out_costs_a_pass_and_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, run = states_after(new_run(), 0), new_run()
    real, calls = type(run.engine.training).step, [0]

    def step(self: Any, params: Tensor, *rest: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == 5:  # the smaller of the two has ended by then
            raise torch.OutOfMemoryError
        return real(self, params, *rest)

    monkeypatch.setattr(type(run.engine.training), "step", step)
    run.engine.width.fits = True
    for k, found in states_after(run, 0).items():
        torch.testing.assert_close(found, wanted[k], rtol=1e-5, atol=1e-6)


# What they start with, and what it costs.


def test_they_receive_what_the_server_has() -> None:
    run = new_run()
    ids, before = Group.from_engine(run.engine).ids, {name: tensor.clone() for name, tensor in run.engine.server.state.items()}
    states, exchanged = starting(run.engine, ids), run.engine.training.layout.exchanged_size
    stack = states.gather_to_answer(ids, run.engine.server.shared)
    assert torch.equal(stack[:, :exchanged], run.engine.server.shared.expand(2, -1))
    assert torch.equal(stack[:, exchanged:], run.engine.states.initial[exchanged:].expand(2, -1))
    assert run.engine.world.ledger.apart == {"new_clients": {"uplink_bytes": 0, "downlink_bytes": 2 * 4 * exchanged}}
    assert run.engine.world.ledger.downlink_bytes == run.engine.world.ledger.uplink_bytes == 0  # those of rounds
    assert all(torch.equal(tensor, run.engine.server.state[name]) for name, tensor in before.items())


def test_or_begin_with_the_mean_of_private_tensors() -> None:
    run = new_run("evaluation.new_clients_start=mean")
    exchanged, size = run.engine.training.layout.exchanged_size, run.engine.training.layout.size
    first, second = run.engine.participants[:2]  # the third one has taken part in no round
    cut = {first: 3, second: 9}  # images, so the weights are 1/4 and 3/4
    run.engine.clients = tuple(
        dataclasses.replace(c, train=c.train[: cut.get(c.id)], labels=c.labels[: cut.get(c.id)]) for c in run.engine.clients
    )
    run.engine.states.scatter([first, second], torch.stack([torch.full((size,), 2.0), torch.full((size,), 6.0)]))
    group = Group.from_engine(run.engine)
    stack = starting(run.engine, group.ids).gather_to_answer(group.ids, run.engine.server.shared)
    assert torch.equal(stack[:, exchanged:], torch.full((2, size - exchanged), 5.0))
    assert torch.equal(stack[:, :exchanged], run.engine.server.shared.expand(2, -1))
    private = 4 * (size - exchanged)  # bytes
    assert run.engine.world.ledger.apart["new_clients_private_mean"] == {"uplink_bytes": 2 * private, "downlink_bytes": 2 * private}
    assert run.engine.world.ledger.apart["new_clients"] == {"uplink_bytes": 0, "downlink_bytes": 2 * 4 * exchanged}


def test_where_nobody_has_trained_there_is_no_mean_of_private_tensors() -> None:
    """They begin as all clients do, not with zeros, and nothing is sent for it."""
    run = new_run("evaluation.new_clients_start=mean")
    group, exchanged = Group.from_engine(run.engine), run.engine.training.layout.exchanged_size
    stack = starting(run.engine, group.ids).gather_to_answer(group.ids, run.engine.server.shared)
    assert torch.equal(stack[:, exchanged:], run.engine.states.initial[exchanged:].expand(2, -1))
    assert run.engine.world.ledger.apart == {"new_clients": {"uplink_bytes": 0, "downlink_bytes": 2 * 4 * exchanged}}


def test_what_they_read_of_others_is_received_too() -> None:
    run = new_run("method.name=pfedmoap", "method.pfedmoap.context=2")
    width = run.engine.training.layout.exchanged_size
    run.engine.server.pool.rows = {i: torch.zeros(width) for i in run.engine.participants}
    starting(run.engine, Group.from_engine(run.engine).ids)
    # The mean, and the prompts of all three participants.
    assert run.engine.world.ledger.apart["new_clients"]["downlink_bytes"] == 2 * 4 * (1 + 3) * width


# Whole runs.

RUN = ["data.new_clients=0.3", "evaluation.every=2", "evaluation.new_clients_epochs=[0,1,2]", "data.camera=0.5"]


def test_a_run_is_of_its_participants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(small.settings(tmp_path / "run", *RUN, "federation.participation=1"))
    summary, rounds = small.summary(tmp_path / "run"), small.metrics(tmp_path / "run")
    met = summary["new_clients"]
    others = [i for i in range(7) if i not in met["ids"]]
    assert len(met["ids"]) == 2 and met["start"] == "seed"
    assert [row["clients"] for row in rounds] == [others, others]
    assert [client["id"] for client in summary["per_client"]] == others
    for name in ("local", "base", "novel"):
        assert summary["accuracy"][name] == pytest.approx(sum(client[name] for client in summary["per_client"]) / 5)
        reference = [client["zero_shot"][name] for client in summary["per_client"]]
        assert summary["zero_shot"][name] == pytest.approx(sum(reference) / 5)
        for row in met["rows"]:
            assert row["accuracy"][name] == pytest.approx(sum(client[name] for client in row["per_client"]) / 2)
    assert [(row["shared"], row["epochs"]) for row in met["rows"]] == [(way, k) for way in ("frozen", "free") for k in (0, 1, 2)]
    assert met["rows"][0]["accuracy"] == met["rows"][3]["accuracy"]  # what they have before they train
    assert met["bytes"] == {"new_clients": {"uplink_bytes": 0, "downlink_bytes": 2 * summary["bytes_per_client_round"]}}
    assert summary["comm"]["downlink_bytes"] == 2 * 5 * summary["bytes_per_client_round"]
    out = capsys.readouterr().out
    assert "5 clients (percent)" in out and "2 new clients after training alone (percent)" in out

    evaluate.main([str(tmp_path / "run")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["new_clients"] == met


def test_without_new_clients_nothing_is_said_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(small.settings(tmp_path / "run", "evaluation.every=2", "federation.rounds=1"))
    assert "new_clients" not in small.summary(tmp_path / "run") and "new clients" not in capsys.readouterr().out


def test_nobody_is_tested_where_nothing_is_evaluated(tmp_path: Path) -> None:
    main(small.settings(tmp_path / "run", *RUN, "evaluation.every=0", "federation.rounds=1"))
    assert "new_clients" not in small.summary(tmp_path / "run") and len(small.summary(tmp_path / "run")["per_client"]) == 5


def test_a_long_phase_says_how_far_it_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, int]] = []
    monkeypatch.setattr(display, "training_new", lambda bar: lambda done, total: heard.append((done, total)))
    main(small.settings(tmp_path / "run", *RUN, "federation.rounds=1", "evaluation.new_clients_shared=free", "evaluation.clients=1"))
    assert small.summary(tmp_path / "run")["new_clients"]["rows"][-1]["shared"] == "free"
    assert len(small.summary(tmp_path / "run")["new_clients"]["ids"]) == 1
    total = heard[-1][1]
    assert heard == [(done, total) for done in range(1, total + 1)] and total % 2 == 0  # two epochs


@pytest.mark.parametrize("name", registry.NAMES)
def test_every_method_meets_them(name: str, tmp_path: Path) -> None:
    more = ["federation.rounds=1", "evaluation.every=1", "data.clients=5", "data.new_clients=0.4", "federation.participation=1"]
    main(small.settings(tmp_path / "run", f"method.name={name}", *more, "evaluation.new_clients_epochs=0,1", "backbone.pretrained=auto"))
    summary = small.summary(tmp_path / "run")
    found = {(row["shared"], row["epochs"]): row for row in summary["new_clients"]["rows"]}
    at_once, frozen, free = found["frozen", 0], found["frozen", 1], found["free", 1]
    assert at_once["per_client"] == found["free", 0]["per_client"]
    if name == "zeroshot":
        assert at_once["accuracy"] == frozen["accuracy"] == free["accuracy"] == summary["new_clients"]["zero_shot"]
    if summary["shared_parameters"] == summary["trained_parameters"]:  # there is nothing of their own to train
        assert frozen["per_client"] == at_once["per_client"]
    if summary["shared_parameters"] == 0:
        assert frozen["per_client"] == free["per_client"]
    received = summary["bytes_per_client_round"] if name != "pfedmoap" else 4 * summary["bytes_per_client_round"]  # and of three others
    assert summary["new_clients"]["bytes"] == {"new_clients": {"uplink_bytes": 0, "downlink_bytes": 2 * received}}


# Ranks, and what ends a run.

MANY = [*RUN, "data.new_clients=0.45", "evaluation.new_clients_start=mean", "method.scale=0.3"]  # 3 of 7: one rank has two of them


def on_ranks(folder: Path, size: int, *more: str, work: Callable[..., None] = train) -> list[Any]:
    meeting = folder.with_name(f"{folder.name}-meet-{len(list(folder.parent.iterdir()))}")
    return run_ranks(meeting, size, work, small.settings(folder, *MANY, "resume=auto", *more))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    values_of(on_ranks(folder, 2, "federation.rounds=3"))
    return folder


def test_ranks_change_nothing(unbroken: Path, tmp_path: Path) -> None:
    values_of(on_ranks(tmp_path / "run", 1, "federation.rounds=3"))
    alone, together = (small.summary(folder)["new_clients"] for folder in (tmp_path / "run", unbroken))
    assert alone["ids"] == together["ids"] and alone["bytes"] == together["bytes"]
    for one, other in zip(alone["rows"], together["rows"], strict=True):
        assert one["accuracy"] == pytest.approx(other["accuracy"], rel=1e-5)
        assert [client["base"] for client in one["per_client"]] == pytest.approx([client["base"] for client in other["per_client"]])


def test_a_run_that_goes_on_has_not_noticed_them(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    values_of(on_ranks(folder, 2, "federation.rounds=2"))
    assert small.summary(folder)["new_clients"]["rows"]
    values_of(on_ranks(folder, 2, "federation.rounds=3"))
    assert [row["loss"] for row in small.metrics(folder)] == [row["loss"] for row in small.metrics(unbroken)]
    ours, wanted = small.final_tensors(folder), small.final_tensors(unbroken)
    assert ours.keys() == wanted.keys() and all(torch.equal(tensor, wanted[name]) for name, tensor in ours.items())
    assert small.summary(folder)["new_clients"] == small.summary(unbroken)["new_clients"]


def killed_among_them(meeting: list[str], settings: list[str]) -> None:
    """Rank 1 dies in the middle of the second training."""
    trained = []

    def dying(*args: Any) -> Any:
        trained.append(args)
        if len(trained) == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return train_alone(*args)

    new_clients.train_alone = dying
    train(meeting, settings)


def test_after_a_kill_it_is_done_again(unbroken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = on_ranks(folder, 2, "federation.rounds=3", work=killed_among_them)
    assert [rank.status for rank in ended] == [2, -signal.SIGKILL] and "'new_clients' for rank 1" in ended[0].stderr
    assert len(small.metrics(folder)) == 3 and not (folder / "summary.json").exists()
    values_of(on_ranks(folder, 2, "federation.rounds=3"))
    ours, wanted = (small.timeless(small.summary(path)) for path in (folder, unbroken))
    assert ours["new_clients"] == wanted["new_clients"] and ours["accuracy"] == wanted["accuracy"]


@pytest.mark.parametrize("every", [0, 1])
def test_a_polite_request_ends_it_and_it_is_done_again(
    every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small.settings(tmp_path / "run", *RUN, f"checkpoint.every={every}", "resume=auto")

    def asked(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return train_alone(*args)

    with monkeypatch.context() as patch:
        patch.setattr(new_clients, "train_alone", asked)
        main(settings)
    assert "interrupted by SIGTERM after round 2 of 2, to be continued: resume=auto" in capsys.readouterr().out
    assert not (tmp_path / "run" / "summary.json").exists()
    main(settings)
    main(small.settings(tmp_path / "straight", *RUN))
    assert small.summary(tmp_path / "run")["new_clients"] == small.summary(tmp_path / "straight")["new_clients"]


def test_a_loss_that_is_not_finite_names_the_client(tmp_path: Path) -> None:
    run = new_run()
    run.engine.server.state["shared"].fill_(float("nan"))
    group = Group.from_engine(run.engine)
    with pytest.raises(Exception, match=rf"loss of client {group.own[1].id} after the last round, batch 1 is nan"):
        train_alone(group, starting(run.engine, group.ids), 0, LENGTHS)
