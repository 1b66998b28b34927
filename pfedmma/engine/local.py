"""Local training of a stack of clients.

Shape legend: C clients in the stack, k of them still training, P parameters of one client.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.stems import StemCache
from pfedmma.data.partition.federated import Client, cameras
from pfedmma.data.pixels.pixels import Pixels, Staged
from pfedmma.data.pixels.prefetch import Prefetched, Stopwatch
from pfedmma.engine.batches import Batch, LocalWork, StagedBatch, batches
from pfedmma.methods.base import SEEDS, Method
from pfedmma.stack import optim
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import LossScale
from pfedmma.stack.rules import Others, State
from pfedmma.system.errors import RankFailure

WHOLE_STEM_BATCH = 256  # images at a time


@dataclass(frozen=True)
class Trainer:
    """Everything that local training reads; it changes only the stack it is given."""

    backbone: Backbone
    method: Method
    layout: Layout
    pixels: Pixels
    text_stem: Any
    work: LocalWork
    stems: StemCache = field(default_factory=lambda: StemCache(0.0))
    waiting: Stopwatch = field(default_factory=Stopwatch)  # for input

    def train(
        self, clients: Sequence[Client], params: Tensor, state: optim.OptimizerState | None, round_: int, others: Others | None = None
    ) -> Tensor:
        """Train the stack in place.

        Args:
            clients: C clients, most steps first (`by_steps`). params: [C,P]. state: optimizer state, each [C,...]; None for a fresh one.
            others: what the clients read of others, for methods that do.

        Returns:
            The mean training loss over each client's steps [C].

        Raises:
            RankFailure: a loss is not finite; names client, round and batch.
        """
        if state is None:
            state = optim.initial_state(self.work.optimizer, len(params), params.shape[1], params.device)
        plans = [batches(client, self.work, round_) for client in clients]
        kept = self.kept(clients)
        losses = torch.zeros(max(map(len, plans)), len(clients), device=params.device)
        scale = LossScale(len(clients), params.device, enabled=self.backbone.precision == "fp16")
        with torch.no_grad(), self.backbone.autocast():
            fixed = self.method.fixed(self.layout.views(params), others, self.text_stem)
        for number, staged in enumerate(Prefetched(self.staged(clients, plans, round_, not kept), self.waiting)):
            k = len(staged.labels)
            rows, constant = ({name: tensor[:k] for name, tensor in tensors.items()} for tensors in (state, fixed))
            losses[number, :k] = self.step(params[:k], rows, constant, self.on_device(clients[:k], staged, kept), scale)
        steps = torch.tensor([len(plan) for plan in plans], device=params.device)
        mean = losses.sum(dim=0) / steps
        finite = torch.isfinite(mean) & torch.isfinite(params).all(dim=1)
        if not bool(finite.all()):  # the one wait for the device in a local training
            _name_first_bad(losses, finite, clients, round_)
        return mean

    def step(self, params: Tensor, state: optim.OptimizerState, fixed: State, batch: Batch, scale: LossScale) -> Tensor:
        """One optimizer step of k clients in place; returns their losses [k]. ``fixed``: `Method.fixed` of these clients."""
        leaves = {name: view.detach().requires_grad_() for name, view in self.layout.views(params).items()}
        seen = {**leaves, **fixed, SEEDS: batch.seeds}
        with self.backbone.autocast():
            stem = self.method.image_stem(batch.images) if isinstance(batch.images, Tensor) else batch.images
            images = self.method.image_features(seen, stem)
            texts = self.method.text_features(seen, self.text_stem)
            losses = self.method.loss(seen, images, texts, batch.labels, batch.weights)
        if losses.requires_grad:  # a method without trained tensors has no gradient
            # A client's gradient comes from its own loss alone, so the sum serves all of them.
            total = scale.scaled(losses).sum()
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
            grads = torch.empty_like(params)
            torch._foreach_copy_(list(self.layout.views(grads).values()), list(found))
            scale.guarded_step(self.work.optimizer, params, grads, state, self.rates)
        return losses.detach()

    @cached_property
    def rates(self) -> Tensor | None:
        """The learning rate of each parameter [P], if the method wants other ones than ``optimizer.lr`` for some."""
        own = self.method.learning_rates
        if not own:
            return None
        lr = self.work.optimizer.lr
        each = {name: torch.full(shape, own.get(name, lr)) for name, shape in self.layout.shapes.items()}
        return self.layout.pack(each).to(self.backbone.device)

    def kept(self, clients: Sequence[Client]) -> list[Any]:
        """The stem of each client's training images, where they are the same in every epoch and there is room; else nothing."""
        if self.pixels.augment != "none":
            return []
        found = []
        for client in clients:
            key = ("train", client.id)
            if self.stems.full and key not in self.stems:
                return []
            found.append(self.stems.get(key, partial(self.whole_stem, client)))
        return found

    @torch.no_grad()
    def whole_stem(self, client: Client) -> Any:
        """The stem of all training images of a client."""
        parts = []
        for rows in torch.arange(len(client.train)).split(WHOLE_STEM_BATCH):
            images = self.pixels.finish(self.pixels.stage(client.train[rows], *self.pixels.draws(len(rows), torch.Generator())))
            with self.backbone.autocast():
                parts.append(self.method.image_stem(self.pixels.normalise(images[None], cameras([client]))[0]))
        return parts[0].join(parts)

    def staged(
        self, clients: Sequence[Client], plans: Sequence[Sequence[Tensor]], round_: int, pixels: bool = True
    ) -> Iterator[StagedBatch]:
        """The batches of a round one after another, each of the clients that still have one; without images if no ``pixels`` are wanted."""
        for number in range(max(map(len, plans))):
            k = sum(len(plan) > number for plan in plans)
            yield self.stage(clients[:k], [plan[number] for plan in plans[:k]], round_, number, pixels)

    def stage(self, clients: Sequence[Client], chosen: Sequence[Tensor], round_: int, number: int, pixels: bool = True) -> StagedBatch:
        """The clients' next batches side by side, padded to the largest with images of weight 0."""
        size = max(map(len, chosen))
        rows = torch.stack([torch.cat([own, own[:1].expand(size - len(own))]) for own in chosen])
        there = torch.arange(size) < torch.tensor([[len(own)] for own in chosen])
        labels = torch.stack([client.labels[own] for client, own in zip(clients, rows, strict=True)])
        weights = there / there.sum(dim=1, keepdim=True)
        seeds = torch.tensor([rng.key(self.work.seed, "noise", round_, client.id, number) for client in clients])
        images = self.staged_images(clients, chosen, round_, number) if pixels else None
        # Each client's images follow those of the one before; padding repeats its first.
        first = torch.tensor([0, *map(len, chosen[:-1])]).cumsum(0)[:, None]
        places = torch.where(there, first + torch.arange(size), first) if pixels else rows
        return StagedBatch(images, places, labels, weights, seeds)

    def staged_images(self, clients: Sequence[Client], chosen: Sequence[Tensor], round_: int, number: int) -> Staged:
        """The images of the clients' next batches, without padding."""
        generators = [rng.generator(self.work.seed, "augment", round_, client.id, number) for client in clients]
        drawn = [self.pixels.draws(len(own), gen) for own, gen in zip(chosen, generators, strict=True)]
        draws, flips = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return self.pixels.stage(torch.cat([c.train[own] for c, own in zip(clients, chosen, strict=True)]), draws, flips)

    def on_device(self, clients: Sequence[Client], staged: StagedBatch, kept: Sequence[Any] = ()) -> Batch:
        """The same batch on the device, seen through the clients' cameras; ``kept``: the stems of the clients' images in their place."""
        device = self.backbone.device
        labels, weights, seeds = (t.to(device) for t in (staged.labels, staged.weights, staged.seeds))
        places = staged.places.to(device)
        if staged.images is None:
            stems = [stem.take(own) for stem, own in zip(kept, places, strict=False)]  # the clients still training come first
            return Batch(stems[0].join(stems), labels, weights, seeds)
        images = self.pixels.normalise(self.pixels.finish(staged.images)[places], cameras(clients))
        return Batch(images.flatten(0, 1), labels, weights, seeds)


def _name_first_bad(losses: Tensor, finite: Tensor, clients: Sequence[Client], round_: int) -> None:
    remedy = "lower optimizer.lr, or set optimizer.clip"
    for number, row in (~torch.isfinite(losses)).nonzero().tolist():
        value = losses[number, row].item()
        raise RankFailure(f"the training loss of client {clients[row].id} in round {round_}, batch {number + 1} is {value}; {remedy}")
    row = int((~finite).nonzero()[0])
    raise RankFailure(f"the last batch of client {clients[row].id} in round {round_} left parameters that are not finite; {remedy}")
