"""Clients are an axis: a client trained in a stack ends with the same numbers as the same client trained alone."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.data.partition.federated import Client
from pfedmma.engine.batches import Batch, LocalWork, Stack, by_steps, plan, steps
from pfedmma.engine.cohort import Members, PassWidth, train_cohort
from pfedmma.engine.local import LocalTraining
from pfedmma.stack.optim import LossScale, OptimizerConfig
from pfedmma.system.errors import UserError
from tests.support.stacks import (
    ALL,
    BATCH,
    EPOCHS,
    NAMES,
    SGD,
    SIZES,
    gathered,
    new_clients,
    new_members,
    new_training,
    serve,
    strong_adapters,
)

WORK = LocalWork(EPOCHS, BATCH, SGD, seed=0)
STEPS = [EPOCHS * -(-size // BATCH) for size in SIZES]  # 2, 2, 2, 6, 6
# A large eps, as Adam divides by the gradient's own size and would blow up rounding errors of gradients near zero.
ADAM = OptimizerConfig(name="adam", lr=0.01, eps=0.1, weight_decay=0.1)
OPTIMIZERS = {
    "sgd": SGD,
    "sgd-persist": dataclasses.replace(SGD, state="persist"),
    "sgd-clip": dataclasses.replace(SGD, clip=2.0),
    "adam": ADAM,
    "adam-persist": dataclasses.replace(ADAM, state="persist"),
    "adamw": dataclasses.replace(ADAM, name="adamw"),
}


def start(clip, optimizer: OptimizerConfig, *options: str) -> tuple[LocalTraining, Members]:
    """Training with crops, and what the clients begin with; ``options`` of `strong_adapters`."""
    method = strong_adapters(clip, *options)
    return new_training(method, optimizer, "crop"), new_members(method, optimizer)


def alone(training: LocalTraining, client: Client, members: Members, round_: int) -> tuple[Tensor, Tensor]:
    """One client's round by itself: (its exchanged tensors [X], its loss)."""
    params, state = gathered(members, [client.id]), members.states.gather_optimizer([client.id])
    loss = training.train([client], params, state, round_)
    members.states.scatter([client.id], params)
    if members.states.optimizer.state == "persist":
        members.states.scatter_optimizer([client.id], state)
    return params[0, : training.layout.exchanged_size], loss[0]


def assert_close(got: Tensor, wanted: Tensor, name: str, small: float = 2e-6) -> None:
    """Within 1e-5, or where an element is small within ``small`` of the tensor's largest."""
    atol = small * float(wanted.abs().max())
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=atol, msg=lambda text: f"{name}: {text}")


def assert_same_optimizer(got: Tensor, wanted: Tensor, name: str) -> None:
    """Running means of gradients: a rounding of the weights shows magnified in them. A wrong one is off by its own size."""
    assert_close(got, wanted, name, small=1e-4)


def assert_same_states(got: Members, wanted: Members) -> None:
    """Every tensor of every client, and its optimizer state."""
    assert got.states.own.keys() == wanted.states.own.keys()
    assert got.states.optimizer_rows.keys() == wanted.states.optimizer_rows.keys()
    for i in wanted.states.own:
        mine, theirs = (members.states.layout.views(gathered(members, [i])[0]) for members in (got, wanted))
        for name, tensor in theirs.items():
            assert_close(mine[name], tensor, f"client {i}, {name}")
    for i in wanted.states.optimizer_rows:
        for name, tensor in wanted.states.optimizer_state(i).items():
            assert_same_optimizer(got.states.optimizer_state(i)[name], tensor, f"client {i}, optimizer {name}")


def assert_stacked_is_alone(training: LocalTraining, stacked: Members, single: Members, clients_per_pass: int, rounds: int) -> None:
    """Train all clients in stacks, and each alone, from the same start; compare what they send, what they keep and their losses."""
    clients = new_clients()
    before = gathered(stacked)
    for round_ in range(1, rounds + 1):
        uploads, losses, *_ = train_cohort(training, clients, stacked, round_, PassWidth(clients_per_pass))
        results = [alone(training, client, single, round_) for client in clients]
        assert_close(losses, torch.stack([loss for _, loss in results]), "losses")
        for client, (own, _) in enumerate(results):
            assert_close(uploads[client], own, f"client {client}, what it sends")
        # A server between the rounds, so that the second starts from what the first exchanged.
        serve(stacked, uploads.mean(dim=0))
        serve(single, torch.stack([own for own, _ in results]).mean(dim=0))
    assert_same_states(stacked, single)
    moved = (gathered(stacked) - before).abs().amax(dim=1)
    assert (moved > 0.005).all()  # the test can fail: the tolerance is hundreds of times smaller


@pytest.mark.parametrize("clients_per_pass", [1, 2, 5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stacked_client_is_the_client_alone(tiny_clip, optimizer: str, clients_per_pass: int) -> None:
    (training, stacked), (_, single) = (start(tiny_clip, OPTIMIZERS[optimizer]) for _ in range(2))
    assert_stacked_is_alone(training, stacked, single, clients_per_pass, rounds=2)


def test_a_stacked_client_with_relu_is_the_client_alone(tiny_clip) -> None:
    """The default activation; one round keeps the number of units at the kink small."""
    (training, stacked), (_, single) = (start(tiny_clip, SGD, "fp32", "relu") for _ in range(2))
    assert_stacked_is_alone(training, stacked, single, clients_per_pass=5, rounds=1)


def test_the_optimizers_differ(tiny_clip) -> None:
    """So that the equalities above say something about each of them."""
    ends = {}
    for name, optimizer in OPTIMIZERS.items():
        training, members = start(tiny_clip, optimizer)
        for round_ in (1, 2):
            alone(training, new_clients()[1], members, round_)
        ends[name] = members.states.own[1]
    names = list(ends)
    for i, name in enumerate(names):
        for other in names[:i]:
            assert (ends[name] - ends[other]).abs().max() > 1e-3, (name, other)


def test_clients_with_most_steps_come_first() -> None:
    """13 images are 4 batches of 4, as are 16; equal ones in order of id."""
    clients = [dataclasses.replace(new_clients()[0], id=i, train=torch.arange(n)) for i, n in enumerate((4, 16, 5, 13, 1))]
    assert [client.id for client in by_steps(clients, WORK)] == [1, 3, 2, 0, 4]


def test_an_epoch_sees_every_image_once_in_its_own_order() -> None:
    client = new_clients()[3]  # 11 images
    planned = plan(client, WORK, round_=1)
    assert [len(rows) for rows in planned] == [4, 4, 3, 4, 4, 3] and steps(client, WORK) == 6
    first, second = torch.cat(planned[:3]), torch.cat(planned[3:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(11))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(
    ("images", "kept"), [(1, [1]), (3, [3]), (4, [4]), (5, [4]), (8, [4, 4]), (11, [4, 4])], ids=lambda value: str(value)
)
def test_the_last_batch_of_an_epoch_is_left_out(images: int, kept: list[int]) -> None:
    """If it is not full; less than one batch is trained on, as the released code's loaders do. What stays is what it was."""
    client = dataclasses.replace(new_clients()[0], train=torch.arange(images))
    work = dataclasses.replace(WORK, drop_last=True)
    planned, whole = plan(client, work, round_=1), plan(client, WORK, round_=1)
    assert [len(rows) for rows in planned] == EPOCHS * kept and steps(client, work) == len(planned) == EPOCHS * len(kept)
    assert work.images(client) == sum(kept) and WORK.images(client) == images
    batches = -(-images // BATCH)
    for epoch in range(EPOCHS):
        for number in range(len(kept)):
            assert torch.equal(planned[epoch * len(kept) + number], whole[epoch * batches + number])


def test_most_steps_are_counted_without_the_batches_that_are_left_out() -> None:
    """5 images are one batch of 4 then, fewer than 8; the order decides which clients still train."""
    clients = [dataclasses.replace(new_clients()[0], id=i, train=torch.arange(n)) for i, n in enumerate((5, 8, 3, 11, 13))]
    assert [client.id for client in by_steps(clients, dataclasses.replace(WORK, drop_last=True))] == [4, 1, 3, 0, 2]


def test_a_stacked_client_without_last_batches_is_the_client_alone(tiny_clip) -> None:
    (training, stacked), (_, single) = (start(tiny_clip, SGD) for _ in range(2))
    work = dataclasses.replace(WORK, drop_last=True)
    training = dataclasses.replace(training, batches=dataclasses.replace(training.batches, work=work))
    assert_stacked_is_alone(training, stacked, single, clients_per_pass=5, rounds=2)


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_a_client_without_batches_left_is_not_touched(tiny_clip, optimizer: OptimizerConfig) -> None:
    """Its momentum neither decays nor drifts while the others go on, and weight decay does not reach it."""
    training, members = start(tiny_clip, optimizer)
    clients = by_steps(new_clients(), WORK)
    ids = [client.id for client in clients]
    params, state = gathered(members, ids), members.states.gather_optimizer(ids)
    training.train(clients, params, state, round_=1)
    assert state["step"].squeeze(1).tolist() == [STEPS[i] for i in ids]
    for row, client in enumerate(clients):
        own_params, own_state = gathered(members, [client.id]), members.states.gather_optimizer([client.id])
        training.train([client], own_params, own_state, round_=1)
        assert_close(params[row], own_params[0], f"client {client.id}")
        for name, tensor in own_state.items():
            assert_same_optimizer(state[name][row], tensor[0], f"client {client.id}, optimizer {name}")


def test_padding_influences_nothing(tiny_clip) -> None:
    """Clients of 3 and 1 images in one batch: what stands in the two padding places has no effect on loss or step."""
    training, members = start(tiny_clip, SGD)
    pair, batches = (new_clients()[1], new_clients()[0]), training.batches
    batch = batches.on_device(pair, batches.stage(Stack(pair, 1), [torch.arange(3), torch.arange(1)], 0))
    assert batch.weights.tolist() == [pytest.approx([1 / 3, 1 / 3, 1 / 3]), [1.0, 0.0, 0.0]]
    pixels, labels = batch.images.clone(), batch.labels.clone()
    pixels[4:] = 50.0 * torch.randn(2, 3, 32, 32, generator=rng.generator(0, "poison"))
    labels[1, 1:] = (labels[1, 1:] + 1) % len(NAMES)

    ends = []
    for each in (batch, Batch(pixels, labels, batch.weights, batch.seeds)):
        params, state = gathered(members, [1, 0]), members.states.gather_optimizer([1, 0])
        losses = training.step(params, state, {}, each, LossScale(2, params.device, enabled=False))
        ends.append((losses, params, state["momentum"]))
    for clean, poisoned in zip(*ends, strict=True):
        torch.testing.assert_close(poisoned, clean, rtol=1e-6, atol=1e-7)
    assert (ends[0][2].abs().amax(dim=1) > 1e-3).all()  # both clients had a gradient


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.2), ("fp16", 0.02)])
def test_lower_precision_ends_near_fp32(tiny_clip, precision: str, tolerance: float) -> None:
    """The way that each client went differs from its way in fp32 by a small part of its length; what is trained stays fp32."""
    ends = {}
    for name in ("fp32", precision):
        training, members = start(tiny_clip, SGD, name)
        before = gathered(members)
        uploads, losses, *_ = train_cohort(training, new_clients(), members, 1, PassWidth(5))
        assert uploads.dtype == losses.dtype == torch.float32
        assert {tensor.dtype for tensor in members.states.own.values()} == {torch.float32}
        private = torch.stack([members.states.own[i] for i in ALL])
        ends[name] = torch.cat([uploads, private], dim=1) - before
    error = (ends[precision] - ends["fp32"]).norm(dim=1) / ends["fp32"].norm(dim=1)
    assert error.max() < tolerance
    assert error.min() > 1e-6  # it is another precision


def test_a_loss_that_is_not_finite_names_client_round_and_batch(tiny_clip) -> None:
    """And the other clients of the stack are not drawn in."""
    training, members = start(tiny_clip, SGD)
    row = members.states.own[1].clone()
    row[0] = float("inf")
    members.states.own[1] = row
    clients = by_steps(new_clients(), WORK)
    ids = [client.id for client in clients]
    params = gathered(members, ids)
    with pytest.raises(UserError, match=r"loss of client 1 in round 7, batch 1 is nan"):
        training.train(clients, params, members.states.gather_optimizer(ids), round_=7)
    for row, client in enumerate(clients):
        if client.id != 1:
            own = gathered(members, [client.id])
            training.train([client], own, members.states.gather_optimizer([client.id]), round_=7)
            assert_close(params[row], own[0], f"client {client.id}")


def test_a_loss_that_bursts_later_names_its_batch(tiny_clip) -> None:
    """With this rate the first step throws the weights out of fp32's range, so that the second batch has no loss."""
    training, members = start(tiny_clip, dataclasses.replace(SGD, lr=1e38))
    with pytest.raises(UserError, match=re.compile(r"client 3 in round 1, batch 2 .* lower optimizer\.lr")) as caught:
        train_cohort(training, [new_clients()[3]], members, 1, PassWidth(5))
    assert "\n" not in str(caught.value)


def test_a_client_whose_fp16_gradient_overflows_skips_the_step_alone() -> None:
    """Client 0's scaled gradient is infinite: it keeps its weights and state and halves its factor; client 1 makes its step."""
    config = OptimizerConfig(lr=0.5, momentum=0.9, weight_decay=0.0)
    scale = LossScale(2, torch.device("cpu"), enabled=True)
    params, state = torch.ones(2, 2), {"momentum": torch.ones(2, 2), "step": torch.ones(2, 1)}
    grads = scale.factor[:, None] * torch.tensor([[1.0, 1.0], [2.0, 4.0]])
    grads[0, 1] = float("inf")
    scale.guarded_step(config, params, grads, state)
    # Client 1: momentum 0.9 * 1 + g = [2.9, 4.9], weights 1 - 0.5 * momentum.
    torch.testing.assert_close(state["momentum"], torch.tensor([[1.0, 1.0], [2.9, 4.9]]))
    torch.testing.assert_close(params, torch.tensor([[1.0, 1.0], [-0.45, -1.45]]))
    assert state["step"].tolist() == [[1.0], [2.0]]
    assert scale.factor.tolist() == [2048.0, 4096.0]
