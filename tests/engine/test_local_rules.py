"""Local training beyond FedAvg's equals the papers' algorithms, written out in `tests.support.plain_rules`, and has their limits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from pfedmma.engine.batches import Coming, Stack, by_steps
from pfedmma.engine.cohort import Members, PassWidth, train_cohort
from pfedmma.engine.graphs import Graphs
from pfedmma.engine.local import LocalTraining
from pfedmma.engine.local_settings import LocalConfig
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.rules import CONTROL, PERSONAL, SERVERS
from pfedmma.stack.start import Start
from tests.engine.test_graphs import Captured
from tests.support import plain_rules, stacks
from tests.support.plain_rules import Plain, new_run, run_rounds

PLAIN = LocalConfig()
SGD = OptimizerConfig(lr=0.05, momentum=0.0, weight_decay=0.01)
MOMENTUM = dataclasses.replace(SGD, momentum=0.9)
ADAM = OptimizerConfig(name="adam", lr=0.05, eps=0.1, weight_decay=0.01)
COHORTS = [(0, 1, 3, 4), (1, 2, 3), (0, 2, 3, 4)]
FEDPROX, DITTO = LocalConfig("fedprox", pull=0.7), LocalConfig("ditto", pull=0.7)
FEDREP, FEDBABU = LocalConfig(trains="private_first"), LocalConfig(trains="exchanged")
SCAFFOLD = LocalConfig("scaffold")
RULES = {
    "plain": (PLAIN, MOMENTUM),
    "fedprox": (FEDPROX, MOMENTUM),
    "fedprox, adam": (FEDPROX, ADAM),
    "scaffold": (SCAFFOLD, SGD),
    "ditto": (DITTO, MOMENTUM),
    "fedrep": (FEDREP, MOMENTUM),
    "fedrep, adam": (FEDREP, ADAM),
    "fedrep, scaffold": (dataclasses.replace(FEDREP, rule="scaffold"), SGD),
    "fedbabu": (FEDBABU, MOMENTUM),
}


def close(found: object, wanted: object) -> bool:
    return found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("rule", RULES)
def test_rounds_are_the_papers(tiny_clip: nn.Module, rule: str, width: int) -> None:
    config, optimizer = RULES[rule]
    training, members = new_run(tiny_clip, config, optimizer)
    plain = Plain(config, optimizer)
    for round_, cohort in enumerate(COHORTS, 1):
        plain.round(round_, cohort)
    run_rounds(training, members, COHORTS, width)
    states, server = members
    assert close(server.shared.item(), plain.s) and abs(plain.s - 0.5) > 0.1
    assert close([row[1] for row in stacks.gathered(members).tolist()], list(plain.p.values()))
    if config.controls:
        assert close(server.state[CONTROL].item(), plain.c) and abs(plain.c) > 0.01
        assert close(states.gather_controls(stacks.ALL)[:, 0].tolist(), list(plain.controls.values()))
    if config.rule == "ditto":
        wanted = [number for pair in plain.personal.values() for number in pair]
        assert close(states.gather_to_answer(stacks.ALL, server.shared).flatten().tolist(), wanted)


def test_a_step_of_fedprox_by_hand(tiny_clip: nn.Module) -> None:
    """From s = 0.5, p = -0.25 both predict s + 2 p = 0. That is the label of client 0, which stays. Client 1 has labels of mean 2.

    Its first gradient is (-2, -4): s = 0.7, p = 0.15, which predict 1. Then it is (-1 + 2 (0.7 - 0.5), -2): s = 0.76, p = 0.35.
    """
    optimizer = OptimizerConfig(lr=0.1, momentum=0.0, weight_decay=0.0)
    training, members = new_run(tiny_clip, LocalConfig("fedprox", pull=2.0), optimizer)
    assert plain_rules.CLIENTS[0].labels.tolist() == [0] and plain_rules.CLIENTS[1].labels.tolist() == [1, 2, 3]
    trained = train_cohort(training, plain_rules.CLIENTS[:2], members, 1, PassWidth(2))
    assert close(trained.uploads.flatten().tolist(), [0.5, 0.76])
    assert close([row.item() for row in members.states.own.values()], [-0.25, 0.35])


@pytest.mark.parametrize("private_alone", [False, True])
def test_fine_tuning_is_the_clients_answer_and_nothing_else(tiny_clip: nn.Module, private_alone: bool) -> None:
    config = LocalConfig(fine_tune_epochs=3, fine_tune="private" if private_alone else "all")
    training, members = new_run(tiny_clip, config, MOMENTUM)
    plain = Plain(config, MOMENTUM)
    for round_, cohort in enumerate(COHORTS[:1], 1):
        plain.round(round_, cohort)
    run_rounds(training, members, COHORTS[:1], 2)
    states, server = members
    before, answers = stacks.gathered(members), states.gather_to_answer(stacks.ALL, server.shared)
    assert torch.equal(answers, before)  # before it is done
    alone = config.fine_tuning(training)
    assert alone is not None
    plain_rules.fine_tune(alone, members, 2)
    found = states.gather_to_answer(stacks.ALL, server.shared).tolist()
    for client in stacks.ALL:  # client 2 has never trained in a round
        assert close(found[client], list(plain.fine_tuned(client, 3, private_alone)))
    assert torch.equal(stacks.gathered(members), before)  # what a next round would begin with


def ends(clip: nn.Module, config: LocalConfig, cohorts: list[tuple[int, ...]] | None = None, optimizer: OptimizerConfig = SGD) -> Tensor:
    training, members = new_run(clip, config, optimizer)
    run_rounds(training, members, cohorts or COHORTS, 5)
    return stacks.gathered(members)


def test_without_a_pull_fedprox_is_fedavg_bit_for_bit(tiny_clip: nn.Module) -> None:
    wanted = ends(tiny_clip, PLAIN)
    assert torch.equal(ends(tiny_clip, LocalConfig("fedprox", pull=0.0)), wanted)
    assert not torch.equal(ends(tiny_clip, FEDPROX), wanted)
    assert torch.equal(ends(tiny_clip, DITTO), wanted)  # what is averaged is FedAvg's


def test_scaffold_of_one_client_and_in_the_first_round_is_fedavg(tiny_clip: nn.Module) -> None:
    """In the first round all control variates are 0; a client alone has the server's, up to rounding."""
    assert torch.equal(ends(tiny_clip, SCAFFOLD, COHORTS[:1]), ends(tiny_clip, PLAIN, COHORTS[:1]))
    assert not torch.equal(ends(tiny_clip, SCAFFOLD), ends(tiny_clip, PLAIN))


def test_the_servers_control_variate_is_the_mean_of_the_clients(tiny_clip: nn.Module) -> None:
    training, members = new_run(tiny_clip, SCAFFOLD, SGD)
    for cohorts in (COHORTS[:1], COHORTS[1:]):
        run_rounds(training, members, cohorts, 5)
        weights = torch.tensor(stacks.SIZES) / plain_rules.IMAGES
        assert close(members.server.state[CONTROL].item(), float(weights @ members.states.gather_controls(stacks.ALL)[:, 0]))
    assert members.server.exchanged == 2 * training.layout.exchanged_size


def adapted(clip: nn.Module, name: str, config: LocalConfig) -> tuple[LocalTraining, Members]:
    """Adapters in both towers, all clients at their start."""
    method = stacks.new_method(clip, name=name, dim=4, scale=0.3, blocks=2)
    members = stacks.new_members(method, trained=[])
    start = Start(method.layout.pack(method.initial(torch.Generator().manual_seed(1))))
    states = ClientStates(method.layout, start, stacks.SGD, torch.device("cpu"), answers=config.answers(SERVERS), controls=config.controls)
    return config.applied(stacks.new_training(method)), Members(states, members.server)


def test_without_a_pull_dittos_personal_models_are_local_training_bit_for_bit(tiny_clip: nn.Module) -> None:
    training, members = adapted(tiny_clip, "pfedmma", LocalConfig("ditto", pull=0.0))
    local, alone = adapted(tiny_clip, "local", PLAIN)
    stacks.serve(members, members.states.initial[: training.layout.exchanged_size])
    for round_ in (1, 2):
        trained = train_cohort(training, stacks.new_clients(), members, round_, PassWidth(5))
        stacks.serve(members, trained.uploads.mean(dim=0))
        train_cohort(local, stacks.new_clients(), alone, round_, PassWidth(5))
    ids = list(stacks.ALL)
    found = training.layout.views(members.states.gather_to_answer(ids, members.server.shared))
    wanted = local.layout.views(stacks.gathered(alone))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    averaged = training.layout.views(stacks.gathered(members))
    assert not any(torch.equal(averaged[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("config", [FEDPROX, DITTO, FEDREP], ids=["fedprox", "ditto", "fedrep"])
def test_graphs_change_no_bit(tiny_clip: nn.Module, config: LocalConfig) -> None:
    """Each kind of step has a graph of its own, which reads what the correction reads."""
    found = []
    for graphs in (None, Graphs(capture := Captured())):
        training, members = new_run(tiny_clip, config, MOMENTUM)
        run_rounds(dataclasses.replace(training, graphs=graphs), members, COHORTS, 2)
        found.append(members.states.gather_to_answer(list(stacks.ALL), members.server.shared))
    assert torch.equal(*found) and capture.replays > capture.captures >= 1


def test_phases_see_the_batches_of_the_round_and_are_staged_ahead(tiny_clip: nn.Module) -> None:
    """Epoch by epoch the same images and draws as without phases; the next phase is begun during the last step of the one before."""
    training, _ = adapted(tiny_clip, "pfedmma", FEDREP)
    crop = stacks.new_training(training.method, augment="crop")
    clients = by_steps(stacks.new_clients(), crop.batches.work)
    whole = [batch for _, batch in crop.batches_of(clients[:1], 1, Coming())]
    with Coming() as coming:
        coming.after = Stack(clients[1:2], 1)
        parts = [(now.trained, batch) for now, batch in FEDREP.applied(crop).batches_of(clients[:1], 1, coming)]
    assert [trained.start for trained, _ in parts] == 3 * [crop.layout.exchanged_size] + 3 * [0]
    for (_, batch), wanted in zip(parts, whole, strict=True):
        assert torch.equal(batch.images, wanted.images) and torch.equal(batch.seeds, wanted.seeds)


def test_what_is_kept_beside(tiny_clip: nn.Module) -> None:
    _, members = new_run(tiny_clip, DITTO, SGD)
    assert members.states.widths() == {"private": 1, PERSONAL: 2}
    _, members = new_run(tiny_clip, SCAFFOLD, SGD)
    assert members.states.widths() == {"private": 1, CONTROL: 1}
    assert not members.states.has_own(3)
