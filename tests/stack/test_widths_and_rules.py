"""Clients of unlike width that train otherwise than FedAvg's: a narrow one among wide ones is as alone, and what it has not stays zero."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pfedmma.engine.cohort import Members, PassWidth, train_cohort
from pfedmma.engine.corrections import Controls, Pull
from pfedmma.engine.local import AFTER_THE_ROUNDS
from pfedmma.engine.local_settings import LocalConfig
from pfedmma.server.rules import SHARED, Uploads
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.rules import CONTROL, MEAN, PERSONAL
from pfedmma.stack.widths import assigned
from pfedmma.train import main
from tests.support import mixed, small, stacks

SGD = OptimizerConfig(lr=0.02, momentum=0.0, weight_decay=0.01)
MOMENTUM = dataclasses.replace(SGD, momentum=0.9)
RULES = {
    "fedprox": (LocalConfig("fedprox", pull=3.0), MOMENTUM),
    "fedprox, adamw": (LocalConfig("fedprox", pull=3.0, trains="private_first"), OptimizerConfig("adamw", lr=0.02, eps=0.1)),
    "ditto": (LocalConfig("ditto", pull=3.0), MOMENTUM),
    "scaffold": (LocalConfig("scaffold"), SGD),
    "fine-tuned": (LocalConfig(trains="exchanged", fine_tune_epochs=2), MOMENTUM),
}
CLIENT = 4  # a narrow one


def kept(members: Members, client: int) -> dict[str, Tensor]:
    """What a client begins its next round with, answers with [P], and has as control variate [X]."""
    states, shared = members.states, members.server.shared
    found = {"own": states.gather([client], shared)[0], "answer": states.gather_to_answer([client], shared)[0]}
    return found | ({CONTROL: states.gather_controls([client])[0]} if CONTROL in states.beside else {})


def serve(own: Members, wide: Members) -> None:
    """Let the server of a narrow client have what that of all sends such a one."""
    layouts = wide.states.layout, own.states.layout
    own.server.state = {name: mixed.narrow(tensor, *layouts) for name, tensor in wide.server.state.items()}


@pytest.mark.parametrize("rule", RULES)
def test_a_narrow_client_among_wide_ones_is_as_alone(tiny_clip: nn.Module, rule: str) -> None:
    config, optimizer = RULES[rule]
    method, members = mixed.new_run(tiny_clip, optimizer, config)
    narrow, own = mixed.alone(tiny_clip, members, optimizer, config)
    plain, plain_alone = (stacks.new_training(each, optimizer) for each in (method, narrow))
    clients, ids = stacks.new_clients(), list(stacks.ALL)
    for round_ in (1, 2):
        serve(own, members)
        trained = train_cohort(config.applied(plain), clients, members, round_, PassWidth(5))
        single = train_cohort(config.applied(plain_alone), [clients[CLIENT]], own, round_, PassWidth(1))
        torch.testing.assert_close(trained.losses[CLIENT:], single.losses, rtol=1e-5, atol=1e-6)
        members.server.round(Uploads(round_, ids, list(stacks.SIZES), ids, trained.uploads, controls=trained.controls))
    serve(own, members)
    if config.fine_tune_epochs:
        train_cohort(config.fine_tuning(plain), clients, members, AFTER_THE_ROUNDS, PassWidth(5))
        train_cohort(config.fine_tuning(plain_alone), [clients[CLIENT]], own, AFTER_THE_ROUNDS, PassWidth(1))
    begun = mixed.narrow(members.states.initial, method.layout, narrow.layout)
    for name, row in kept(members, CLIENT).items():
        wanted, size = kept(own, CLIENT)[name], len(row)
        blocks = mixed.narrow(row, method.layout, narrow.layout)
        torch.testing.assert_close(blocks, wanted, rtol=2e-4, atol=2e-5 if name == CONTROL else 2e-6)
        outside = members.states.widths_of.mask(CLIENT)[:size] == 0
        assert outside.any() and not row[outside].any(), f"{name} has something outside of its blocks"
        assert (wanted - begun[: len(wanted)]).abs().max() > 1e-3
    assert (config.answers("server") == PERSONAL) == (not torch.equal(*list(kept(members, CLIENT).values())[:2]))


def test_what_a_narrow_client_reads_by_hand(tiny_clip: nn.Module) -> None:
    """w = (7, 5) of whom the narrow client has one number: it is pulled by 2 (x - w) = 2 (8 - 7), and its zero by nothing.

    c = (3, 1), and no client has a c_i: 3 is added to its first number. After two steps of rate 0.5, c_i changes by (7 - 8) / 1 - 3.
    """
    layout = Layout({"s": (2,)}, {"s": MEAN})
    widths = mixed.Widths.from_shapes({0: 2, 1: 1}, layout, {1: {"s": (1,)}, 2: {"s": (2,)}}, mixed.CPU)
    states = mixed.ClientStates(layout, mixed.Start(torch.zeros(2)), SGD, mixed.CPU, widths_of=widths, controls=True)
    state = {SHARED: torch.tensor([7.0, 5.0]), CONTROL: torch.tensor([3.0, 1.0])}
    server = mixed.Server(layout, state, mixed.World(0, 1, mixed.CPU))
    pull, controls, x = Pull(2.0), Controls(), torch.tensor([[8.0, 8.0], [8.0, 0.0]])
    assert pull.added(x, pull.reads([0, 1], states, server)).tolist() == [[2.0, 6.0], [2.0, 0.0]]
    assert controls.reads([0, 1], states, server).tolist() == [[3.0, 1.0], [3.0, 0.0]]
    received, control = (states.received([1], server.state[name]) for name in (SHARED, CONTROL))
    assert controls.changes(received, x[1:], control, [2], torch.tensor(0.5)).tolist() == [[-4.0, 0.0]]


# Whole runs ------------------------------------------------------------------------------------------------------------------------------

RUN = ["method.dims=3:0.5,8:0.5", "method.scale=0.3", "federation.participation=0.6", "checkpoint.every=1", "resume=auto"]
WAYS = {
    "plain": ["optimizer.state=persist"],
    "scaffold": ["local.rule=scaffold", "optimizer.momentum=0"],
    "ditto": ["local.rule=ditto"],
}


@pytest.mark.parametrize("way", WAYS)
def test_resumed_is_uninterrupted(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch)
    given = [*RUN, *WAYS[way]]
    for name, rounds in (("whole", 3), ("parts", 1), ("parts", 3)):
        main(small.settings(tmp_path / name, *given, f"federation.rounds={rounds}"))
    found, wanted = (small.final_tensors(tmp_path / name) for name in ("parts", "whole"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    rows, again = (small.timeless(small.metrics(tmp_path / name)) for name in ("whole", "parts"))
    assert rows == again
    numbers = {width: 3 * (width**2 + width) for width in (3, 8)}  # of S in three blocks
    of, twice = assigned({3: 0.5, 8: 0.5}, 7, 0), 2 if way == "scaffold" else 1
    for row in rows:
        own = 4 * twice * sum(numbers[of[client]] for client in row["clients"])
        assert row["comm"]["uplink_bytes"] == row["comm"]["downlink_bytes"] == own
