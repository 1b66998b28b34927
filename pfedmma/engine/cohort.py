"""Local training of a stack of clients in one pass.

All clients of the stack go through the one frozen backbone together; each has its own parameters, optimizer state, batches
and loss. Clients of unequal size are sorted so that those still training are always the first rows: a client that has run out
of batches costs nothing and its slice, momentum included, is not touched.

Shape legend: C clients in the stack, k of them still training, B images a client, P parameters of one client.
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
from pfedmma.methods.base import SEEDS, Method, Others, State
from pfedmma.stack import optim
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.linear import Layout
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.system.errors import RankFailure

WHOLE_STEM_BATCH = 256  # images at a time
MOST_IN_A_PASS = 256  # clients, where the memory of a GPU decides


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


@dataclass(frozen=True)
class StagedBatch:
    """A batch of k clients on the host: the distinct ``images``; ``places`` [k,B], their rows; ``labels`` and ``weights`` [k,B].

    ``images`` None: stems are at hand, and ``places`` are positions among each client's own training images. ``seeds`` [k]: a random
    number of each client for this step, for methods that draw noise.
    """

    images: Staged | None
    places: Tensor
    labels: Tensor
    weights: Tensor
    seeds: Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of k clients: ``images``, client by client, are normalised pixels [k*B,3,S,S], or the stem that follows from them.

    ``labels`` and ``weights`` [k,B], ``seeds`` [k].
    """

    images: Any
    labels: Tensor
    weights: Tensor
    seeds: Tensor


class LossScale:
    """Loss scaling for fp16, one factor a client: a client whose gradient overflows skips the step and halves its factor."""

    def __init__(self, clients: int, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self.factor = torch.full((clients,), 4096.0, device=device)

    def scaled(self, losses: Tensor) -> Tensor:
        return losses * self.factor[: len(losses)] if self.enabled else losses

    def guarded_step(
        self, config: OptimizerConfig, params: Tensor, grads: Tensor, state: optim.OptimizerState, rates: Tensor | None = None
    ) -> None:
        """An optimizer step on the unscaled gradients; without scaling, just the step."""
        if not self.enabled:
            return optim.step(config, params, grads, state, rates)
        k = len(params)
        grads = grads / self.factor[:k, None]
        good = torch.isfinite(grads).all(dim=1, keepdim=True)
        before = {"": params.clone()} | {name: tensor.clone() for name, tensor in state.items()}
        optim.step(config, params, torch.where(good, grads, 0.0), state, rates)
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


class PassWidth:
    """How many clients of a rank share a pass. ``fits`` says that the number is a guess, to be halved where memory runs out."""

    def __init__(self, now: int, fits: bool = False) -> None:
        self.now, self.fits = now, fits

    @classmethod
    def of(cls, wanted: str, device: torch.device) -> PassWidth:
        """From ``federation.clients_per_pass``."""
        if wanted != "auto":
            return cls(int(wanted))
        return cls(10) if device.type == "cpu" else cls(MOST_IN_A_PASS, fits=True)

    def shrink(self, tried: int) -> None:
        """After ``tried`` clients were too many. Raises a `RankFailure` if fewer cannot be tried."""
        if not self.fits or tried == 1:
            raise RankFailure(
                f"out of memory with {tried} clients in a pass; lower federation.batch_size or federation.stems_gb"
                + ("" if tried == 1 else ", or set federation.clients_per_pass=auto")
            )
        self.now = -(-tried // 2)


def train_cohort(trainer: Trainer, clients: Sequence[Client], store: ClientStore, round_: int, width: PassWidth) -> tuple[Tensor, Tensor]:
    """Train ``clients`` from the store, as many at a time as ``width`` says, and keep their private state.

    Returns:
        The shared part of every client after training [C, X] and the mean losses [C], both in the order of ``clients``.
    """
    shared = torch.empty(len(clients), trainer.layout.exchanged_size, device=store.device)
    losses = torch.empty(len(clients), device=store.device)
    place = {client.id: row for row, client in enumerate(clients)}
    left = by_steps(clients, trainer.work.batch_size)
    while left:
        group, after = left[: width.now], left[width.now :]
        rows = [place[client.id] for client in group]
        try:
            # Nothing of the group is kept before all of it is done, so it can be tried again in smaller parts.
            params, state, losses[rows] = train_group(trainer, group, after[: width.now], store, round_)
        except torch.OutOfMemoryError:
            width.shrink(len(group))
            store.free_workspace()
            continue
        shared[rows] = params[:, : trainer.layout.exchanged_size]
        store.scatter([client.id for client in group], params)
        if state is not None:
            store.scatter_optimizer([client.id for client in group], state)
        left = after
    return shared, losses


def train_group(
    trainer: Trainer, group: Sequence[Client], after: Sequence[Client], store: ClientStore, round_: int
) -> tuple[Tensor, optim.OptimizerState | None, Tensor]:
    """Train one stack, while the state of those ``after`` it is brought near.

    Returns:
        Its parameters [C, P], its optimizer state (None where that ends with the round), and its losses [C].
    """
    ids = [client.id for client in group]
    params = store.gather_to_train(ids)
    state = store.gather_optimizer(ids) if store.optimizer.state == "persist" else None
    store.prefetch([client.id for client in after])
    losses = trainer.train(group, params, state, round_, store.others(ids, trainer.method.reads))
    return params, state, losses


def _name_first_bad(losses: Tensor, finite: Tensor, clients: Sequence[Client], round_: int) -> None:
    remedy = "lower optimizer.lr, or set optimizer.clip"
    for number, row in (~torch.isfinite(losses)).nonzero().tolist():
        value = losses[number, row].item()
        raise RankFailure(f"the training loss of client {clients[row].id} in round {round_}, batch {number + 1} is {value}; {remedy}")
    row = int((~finite).nonzero()[0])
    raise RankFailure(f"the last batch of client {clients[row].id} in round {round_} left parameters that are not finite; {remedy}")
