"""The system (client axis, stems, cut context, pooled-token shortcut, flat exchange) equals the plain algorithm of `oracle`."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.clip.loading import create_model
from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.data.partition.federated import EvaluationSet, FederatedData, cameras
from pfedmma.engine.cohort import Members
from pfedmma.methods.forward import Forward
from pfedmma.records.rows import RoundRow
from pfedmma.run.assembly import Run, assemble
from pfedmma.server.rules import SHARED
from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.rules import NOTHING
from pfedmma.stack.start import Start
from tests.support import oracle
from tests.support.stacks import gathered

EXCHANGED = {"pfedmma": lambda name: name.startswith("shared."), "local": lambda name: False, "fedavg_mma": lambda name: True}
BASE = ("seed=3", "backbone.pretrained=none", "data.clients=3", "data.shots=2", "federation.rounds=2", "federation.batch_size=8")
# The scale and the rates are far above the defaults, so that every tensor moves by far more than the tolerance. GELU, as at a
# ReLU's kink the last bit of a sum decides on a gradient: once in some millions of units, and then the difference is seen.
BASE += ("method.dim=8", "method.scale=0.3", "method.blocks=3", "method.activation=gelu", "evaluation.every=0")
# ReLU, with few units and steps.
RELU = ("method.activation=relu", "method.dim=4", "method.blocks=2", "federation.batch_size=20", "federation.local_epochs=1")
SGD = ("optimizer.lr=0.01",)
# Adam divides by the gradient's own size: without a large eps it would blow up rounding errors of gradients near zero.
ADAMW = ("optimizer.name=adamw", "optimizer.lr=0.005", "optimizer.eps=0.1", "optimizer.weight_decay=0.1")
# Two of three clients in each of three rounds; with this seed clients 1, 2 and 0 sit out in turn.
PARTIAL = ("federation.participation=0.67", "federation.rounds=3", "seed=0")
SIZES = (5, 20, 12)  # images a client: less than a batch, ragged last batches, unequal weights n_i / n


class Silent:
    """A listener that keeps nothing."""

    def round_done(self, row: RoundRow) -> None: ...

    def checkpoint_due(self, round_: int) -> bool:
        return False

    def save(self, round_: int) -> None: ...


def new_run(*settings: str) -> tuple[Run, nn.Module]:
    """A run of three clients of unequal size, and the same CLIP as open_clip's own model.

    Biases start away from 0, so that 1e-5 of their size is above the rounding errors of their gradients' long sums.
    """
    run = assemble(configuration.load(None, [*BASE, *settings]), World(0, 1, torch.device("cpu")))
    pairs = zip(run.engine.clients, SIZES, strict=True)
    run.engine.clients = tuple(dataclasses.replace(c, train=c.train[:n], labels=c.labels[:n]) for c, n in pairs)
    start, layout, world = gathered(run.engine.members, [0])[0], run.engine.states.layout, run.engine.world
    start += 0.1 * torch.randn(start.shape, generator=rng.generator(0, "start"))
    states = ClientStates(layout, Start(start), run.config.optimizer, world.device)
    run.engine.members = Members(states, Server(layout, {SHARED: start[: layout.exchanged_size]}, world, run.engine.server.rules))
    return run, create_model(run.config.backbone, run.config.seed)


def states(run: Run) -> list[dict[str, Tensor]]:
    """What the system holds for each client, by tensor name."""
    members = run.engine.members
    return [members.states.layout.views(gathered(members, [client.id])[0]) for client in run.engine.clients]


def new_models(run: Run, clip: nn.Module) -> list[oracle.Adapters]:
    """The oracle's adapters for each client, with the numbers that the system holds now."""
    models = []
    for state in states(run):
        config = run.config.method
        models.append(oracle.Adapters(clip, config.blocks, config.dim, config.scale, config.activation))
        models[-1].load_state_dict(state)  # strict: also compares names and shapes
    return models


def assert_close(got: Tensor, wanted: Tensor, name: str) -> None:
    """Within 1e-5, or where an element is small within 2e-6 of the tensor's largest."""
    atol = 2e-6 * float(wanted.abs().max())
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=atol, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("pfedmma", SGD),
        ("pfedmma", (*SGD, *RELU)),
        ("pfedmma", ADAMW),
        ("pfedmma", (*SGD, *PARTIAL, "data.augment=crop")),
        ("pfedmma", (*SGD, *PARTIAL, "federation.clients_per_pass=1")),
        ("local", (*SGD, *PARTIAL)),
        ("fedavg_mma", SGD),
        ("fedavg_mma", (*SGD, *PARTIAL)),
    ],
)
def test_rounds_equal_the_plain_algorithm(method: str, settings: tuple[str, ...]) -> None:
    run, clip = new_run(f"method.name={method}", *settings)
    start, models = states(run), new_models(run, clip)
    tokens = oracle.prompts(clip, run.federated.template, run.federated.base.classes)

    run.engine.run(1, Silent())
    oracle.federate(clip, run.config, run.engine.clients, run.engine.training.batches.pixels, tokens, models, EXCHANGED[method])

    for client, got in enumerate(states(run)):
        for name, wanted in models[client].state_dict().items():
            assert_close(got[name], wanted, f"client {client}, {name}")
            # The test can fail: every tensor moved by at least 30 times what is tolerated.
            assert (wanted - start[client][name]).abs().max() > 3e-4 * wanted.abs().max(), name


def few(images: EvaluationSet) -> EvaluationSet:
    """Every 12th image: five of every six classes, one each."""
    return dataclasses.replace(images, indices=images.indices[::12], labels=images.labels[::12])


def evaluation_run() -> tuple[Run, nn.Module]:
    """Three clients whose adapters of both towers differ, and small test sets."""
    run, clip = new_run("data.camera=0.35")
    states, method = run.engine.states, run.engine.training.method
    for client in run.engine.clients:
        drawn = states.layout.pack(method.initial(rng.generator(0, "private", client.id)))
        states.own[client.id] = drawn[states.layout.exchanged_size :]
    return run, clip


def oracle_logits(run: Run, clip: nn.Module, images: EvaluationSet) -> list[Tensor]:
    """[n, K] of each client, from the states that the system holds now."""
    pixels, template = run.engine.training.batches.pixels, run.federated.template
    pairs = zip(new_models(run, clip), run.engine.clients, strict=True)
    return [oracle.logits_on(clip, model, client, pixels, images, template) for model, client in pairs]


@pytest.mark.parametrize("label_space", ["base", "novel"])
def test_logits_of_a_stack_equal_each_clients_own(label_space: str) -> None:
    run, clip = evaluation_run()
    images = few(getattr(run.federated, label_space))
    wanted = oracle_logits(run, clip, images)

    pixels, state = run.engine.training.batches.pixels, run.engine.members.answers().tensors([0, 1, 2])
    forward = Forward.from_prompts(run.engine.training.method, run.federated.template, images.classes)
    pictures = pixels.normalise(pixels.fitted(images.split, images.indices).expand(3, -1, -1, -1, -1), cameras(run.engine.clients))
    with torch.no_grad():
        state = {**state, **forward.fixed(state, NOTHING)}
        got = forward.logits(state, forward.image_stem(pictures.flatten(0, 1)), forward.text_features(state))

    for client in range(3):
        assert_close(got[client], wanted[client], f"client {client}")
    assert (wanted[0] - wanted[1]).abs().max() > 0.1  # the clients' models do differ


def relabelled(run: Run, clip: nn.Module) -> FederatedData:
    """Small test sets whose labels are the oracle's answers: those of client 0 on every sixth image, 1 on two of six, 2 on three.

    Random weights know nothing; with these labels the accuracies depend on every client's own answers all the same.
    """
    small = {}
    for name in ("base", "novel"):
        images = few(getattr(run.federated, name))
        answers = torch.stack([logits.argmax(dim=1) for logits in oracle_logits(run, clip, images)])
        turn = torch.tensor([0, 1, 1, 2, 2, 2]).repeat(len(images.labels))[: len(images.labels)]
        small[name] = dataclasses.replace(images, labels=answers[turn, torch.arange(len(turn))])
    return dataclasses.replace(run.federated, **small)


def oracle_table(run: Run, clip: nn.Module, federation: FederatedData) -> Tensor:
    """Local, Base, Novel in percent, [clients, 3]."""
    rows = []
    right = [[t.argmax(dim=1) == s.labels for t in oracle_logits(run, clip, s)] for s in (federation.base, federation.novel)]
    for client, base, novel in zip(run.engine.clients, *right, strict=True):
        rows.append([100.0 * answers.double().mean() for answers in (base[client.test], base, novel)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("clients_per_pass", [1, 2, 3])
def test_accuracies_follow_each_clients_current_adapters(clients_per_pass: int) -> None:
    run, clip = evaluation_run()
    run.engine.clients = tuple(dataclasses.replace(c, test=torch.arange(c.id, 50, 3)) for c in run.engine.clients)
    federation = dataclasses.replace(relabelled(run, clip), clients=run.engine.clients)
    run.engine.evaluation.evaluator = dataclasses.replace(
        run.engine.evaluation.evaluator, federated=federation, batch_size=21, clients_per_pass=clients_per_pass
    )
    before = oracle_table(run, clip, federation)
    run.engine.evaluate()
    torch.testing.assert_close(run.engine.evaluation.table[:, :3], before)
    assert len(before[:, 1].unique()) == len(before[:, 2].unique()) == 3  # other adapters, other answers

    # Only the text adapters of client 1 change: a text feature kept from the first evaluation would show.
    states, own = run.engine.states, gathered(run.engine.members, [1])
    for name, tensor in states.layout.views(own[0]).items():
        if name.startswith("text."):
            tensor.mul_(-1.0)
    states.scatter([1], own)
    after = oracle_table(run, clip, federation)
    run.engine.evaluate()
    torch.testing.assert_close(run.engine.evaluation.table[:, :3], after)
    assert (after[1] != before[1]).all()
    assert torch.equal(after[[0, 2]], before[[0, 2]])
