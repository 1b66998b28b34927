"""Local training of a stack of clients in one pass.

All clients of the stack go through the one frozen backbone together; each has its own parameters, optimizer state, batches
and loss. Clients of unequal size are sorted so that those still training are always the first rows: a client that has run out
of batches costs nothing and its slice, momentum included, is not touched.

Shape legend: C clients in the stack, k of them still training, B images a client, P parameters of one client.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfedmma import optim, rng
from pfedmma.adapters.stacked import Layout
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.towers import Stem
from pfedmma.data.images import Pixels, Staged
from pfedmma.data.partition import Client, cameras
from pfedmma.data.prefetch import Prefetched, Stopwatch
from pfedmma.errors import UserError
from pfedmma.methods.base import Method
from pfedmma.optim import OptimizerConfig
from pfedmma.store import ClientStore


@dataclass(frozen=True)
class LocalWork:
    """What a client does in a round: ``epochs`` passes over its images in batches of ``batch_size``."""

    epochs: int
    batch_size: int
    optimizer: OptimizerConfig
    seed: int


@dataclass(frozen=True)
class Trainer:
    """Everything that local training reads; it changes only the stack it is given."""

    backbone: Backbone
    method: Method
    layout: Layout
    pixels: Pixels
    text_stem: Stem
    work: LocalWork
    waiting: Stopwatch = field(default_factory=Stopwatch)  # for input

    def train(self, clients: Sequence[Client], params: Tensor, state: optim.OptimizerState, round_: int) -> Tensor:
        """Train the stack in place.

        Args:
            clients: C clients, most steps first (`by_steps`). params: [C,P]. state: optimizer state, each [C,...].

        Returns:
            The mean training loss over each client's steps [C].

        Raises:
            UserError: a loss is not finite; names client, round and batch.
        """
        plans = [batches(client, self.work, round_) for client in clients]
        losses = torch.zeros(max(map(len, plans)), len(clients), device=params.device)
        scale = LossScale(len(clients), params.device, enabled=self.backbone.precision == "fp16")
        for number, staged in enumerate(Prefetched(self.staged(clients, plans, round_), self.waiting)):
            k = len(staged.labels)
            rows = {name: tensor[:k] for name, tensor in state.items()}
            losses[number, :k] = self.step(params[:k], rows, self.on_device(clients[:k], staged), scale)
        steps = torch.tensor([len(plan) for plan in plans], device=params.device)
        mean = losses.sum(dim=0) / steps
        finite = torch.isfinite(mean) & torch.isfinite(params).all(dim=1)
        if not bool(finite.all()):  # the one wait for the device in a local training
            _name_first_bad(losses, finite, clients, round_)
        return mean

    def step(self, params: Tensor, state: optim.OptimizerState, batch: Batch, scale: LossScale) -> Tensor:
        """One optimizer step of k clients in place; returns their losses [k]."""
        leaves = {name: view.detach().requires_grad_() for name, view in self.layout.views(params).items()}
        with self.backbone.autocast():
            stem = self.method.image_stem(batch.pixels)
            images = self.method.image_features(leaves, stem)
            texts = self.method.text_features(leaves, self.text_stem)
            losses = self.method.loss(leaves, images, texts, batch.labels, batch.weights)
        if losses.requires_grad:  # a method without trained tensors has no gradient
            # A client's gradient comes from its own loss alone, so the sum serves all of them.
            total = scale.scaled(losses).sum()
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
            grads = torch.empty_like(params)
            torch._foreach_copy_(list(self.layout.views(grads).values()), list(found))
            scale.guarded_step(self.work.optimizer, params, grads, state)
        return losses.detach()

    def staged(self, clients: Sequence[Client], plans: Sequence[Sequence[Tensor]], round_: int) -> Iterator[StagedBatch]:
        """The batches of a round one after another, each of the clients that still have one."""
        for number in range(max(map(len, plans))):
            k = sum(len(plan) > number for plan in plans)
            yield self.stage(clients[:k], [plan[number] for plan in plans[:k]], round_, number)

    def stage(self, clients: Sequence[Client], chosen: Sequence[Tensor], round_: int, number: int) -> StagedBatch:
        """The clients' next batches side by side, padded to the largest with images of weight 0."""
        size = max(map(len, chosen))
        draws, flips, labels, weights, places = [], [], [], [], []
        first = 0  # row of the client's first image
        for client, rows in zip(clients, chosen, strict=True):
            draw, flip = self.pixels.draws(len(rows), rng.generator(self.work.seed, "augment", round_, client.id, number))
            draws.append(draw)
            flips.append(flip)
            fill = size - len(rows)
            labels.append(torch.cat([client.labels[rows], client.labels[rows[:1]].expand(fill)]))
            weights.append(torch.cat([torch.full((len(rows),), 1.0 / len(rows)), torch.zeros(fill)]))
            places.append(torch.cat([torch.arange(first, first + len(rows)), torch.full((fill,), first)]))
            first += len(rows)
        indices = torch.cat([client.train[rows] for client, rows in zip(clients, chosen, strict=True)])
        images = self.pixels.stage(indices, torch.cat(draws), torch.cat(flips))
        return StagedBatch(images, torch.stack(places), torch.stack(labels), torch.stack(weights))

    def on_device(self, clients: Sequence[Client], staged: StagedBatch) -> Batch:
        """The same batch on the device, seen through the clients' cameras."""
        device = self.backbone.device
        images = self.pixels.finish(staged.images)[staged.places.to(device)]
        pixels = self.pixels.normalise(images, cameras(clients))
        return Batch(pixels.flatten(0, 1), staged.labels.to(device), staged.weights.to(device))


@dataclass(frozen=True)
class StagedBatch:
    """A batch of k clients on the host: the distinct ``images``; ``places`` [k,B], their rows; ``labels`` and ``weights`` [k,B]."""

    images: Staged
    places: Tensor
    labels: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of k clients: ``pixels`` [k*B,3,S,S] client by client, ``labels`` and ``weights`` [k,B]."""

    pixels: Tensor
    labels: Tensor
    weights: Tensor


class LossScale:
    """Loss scaling for fp16, one factor a client: a client whose gradient overflows skips the step and halves its factor."""

    def __init__(self, clients: int, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self.factor = torch.full((clients,), 4096.0, device=device)

    def scaled(self, losses: Tensor) -> Tensor:
        return losses * self.factor[: len(losses)] if self.enabled else losses

    def guarded_step(self, config: OptimizerConfig, params: Tensor, grads: Tensor, state: optim.OptimizerState) -> None:
        """An optimizer step on the unscaled gradients; without scaling, just the step."""
        if not self.enabled:
            return optim.step(config, params, grads, state)
        k = len(params)
        grads = grads / self.factor[:k, None]
        good = torch.isfinite(grads).all(dim=1, keepdim=True)
        before = {"": params.clone()} | {name: tensor.clone() for name, tensor in state.items()}
        optim.step(config, params, torch.where(good, grads, 0.0), state)
        for name, tensor in ({"": params} | state).items():
            tensor.copy_(torch.where(good, tensor, before[name]))
        self.factor[:k] = torch.where(good[:, 0], self.factor[:k], self.factor[:k] / 2.0)


def batches(client: Client, work: LocalWork, round_: int) -> list[Tensor]:
    """The client's batches of one round: positions in its own training images, reshuffled every epoch."""
    plan: list[Tensor] = []
    for epoch in range(work.epochs):
        gen = rng.generator(work.seed, "shuffle", round_, client.id, epoch)
        plan += torch.randperm(len(client.train), generator=gen).split(work.batch_size)
    return plan


def by_steps(clients: Sequence[Client], batch_size: int) -> list[Client]:
    """Clients with the most local steps first; equal ones in order of id."""
    return sorted(clients, key=lambda c: (-len(c.train) // batch_size, c.id))


def train_cohort(
    trainer: Trainer, clients: Sequence[Client], store: ClientStore, round_: int, clients_per_pass: int
) -> tuple[Tensor, Tensor]:
    """Train ``clients`` from the store, ``clients_per_pass`` at a time, and keep their private state.

    Returns:
        The shared part of every client after training [C, X] and the mean losses [C], both in the order of ``clients``.
    """
    shared = torch.empty(len(clients), trainer.layout.exchanged_size, device=store.device)
    losses = torch.empty(len(clients), device=store.device)
    place = {client.id: row for row, client in enumerate(clients)}
    ordered = by_steps(clients, trainer.work.batch_size)
    for start in range(0, len(ordered), clients_per_pass):
        group = ordered[start : start + clients_per_pass]
        ids = [client.id for client in group]
        params, state = store.gather(ids), store.gather_optimizer(ids)
        rows = [place[i] for i in ids]
        losses[rows] = trainer.train(group, params, state, round_)
        shared[rows] = params[:, : trainer.layout.exchanged_size]
        store.scatter(ids, params)
        store.scatter_optimizer(ids, state)
    return shared, losses


def _name_first_bad(losses: Tensor, finite: Tensor, clients: Sequence[Client], round_: int) -> None:
    remedy = "lower optimizer.lr, or set optimizer.clip"
    for number, row in (~torch.isfinite(losses)).nonzero().tolist():
        value = losses[number, row].item()
        raise UserError(f"the training loss of client {clients[row].id} in round {round_}, batch {number + 1} is {value}; {remedy}")
    row = int((~finite).nonzero()[0])
    raise UserError(f"the last batch of client {clients[row].id} in round {round_} left parameters that are not finite; {remedy}")
