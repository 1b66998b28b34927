"""The batches of local training: which images each client sees in which step, made on the host while the step before is computed.

Clients of unequal size stand so that those still training are always the first rows: a client that has run out of batches costs nothing.

Shape legend: C clients in the stack, k of them still training, B images a client, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.clip.stems import Stem, StemCache
from pfedmma.data.partition.camera import Camera
from pfedmma.data.partition.federated import Client, cameras
from pfedmma.data.pixels.pixels import Pixels, Staged
from pfedmma.data.pixels.prefetch import Ahead, Prefetched
from pfedmma.methods.forward import Forward
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.system.staging import Sent, Staging

WHOLE_STEM_BATCH = 256  # images at a time
STEP = 8  # images of a client between two sizes of a GPU's batches
ONE_EPOCH = range(1)


@dataclass(frozen=True)
class LocalWork:
    """What a client does in a round: ``epochs`` passes over its images in batches of ``batch_size``.

    ``drop_last``: an epoch's last batch is left out if it is not full. A client with less than one batch trains on what it has: so do the
    loaders of the released code (Dassl's), while torch's own ``drop_last`` would leave it without a step.
    """

    epochs: int
    batch_size: int
    optimizer: OptimizerConfig
    seed: int
    drop_last: bool = False

    def images(self, client: Client) -> int:
        """How many images of a client an epoch trains on."""
        count = len(client.train)
        return count - count % self.batch_size if self.drop_last and count > self.batch_size else count


class Stack(NamedTuple):
    """Clients that train together in a round; most steps first (`by_steps`), unless something else is said.

    ``epochs``: which of the round's epochs; None: all.
    """

    clients: Sequence[Client]
    round: int
    epochs: range | None = None


@dataclass(frozen=True)
class StagedBatch:
    """A batch of k clients, made on the host: the distinct ``images``; ``rows`` [k,B] among them; ``labels`` and ``weights`` [k,B].

    ``images`` None: stems are at hand, and ``rows`` are positions among each client's own training images. ``seeds`` [k]: a random
    number of each client for this step, for methods that draw noise.
    """

    images: Staged | None
    rows: Tensor
    labels: Tensor
    weights: Tensor
    seeds: Tensor


class Coming(Ahead[Sent[StagedBatch]]):
    """Batches that are staged before their stack trains: during the last step of the one before, and all that is between two rounds.

    ``after``: the stack that trains after the one that trains now. ``next_round``: all clients that this rank trains in the next round,
    in any order. None: there are none, or it is not known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.after: Stack | None = None
        self.next_round: Stack | None = None


@dataclass(frozen=True)
class Batch:
    """One batch of k clients: ``images``, client by client, are normalised pixels [k*B,3,S,S], or the stem that follows from them.

    ``labels`` and ``weights`` [k,B], ``seeds`` [k].
    """

    images: Stem | Tensor
    labels: Tensor
    weights: Tensor
    seeds: Tensor


@dataclass(frozen=True)
class Batches:
    """Makes the batches of a stack of clients. ``stems`` keeps what follows from images that are the same in every epoch."""

    forward: Forward
    pixels: Pixels
    work: LocalWork
    stems: StemCache = field(default_factory=lambda: StemCache(0.0))

    @cached_property
    def staging(self) -> Staging:
        """The way to the device."""
        return Staging(self.forward.device)

    def of_round(self, stack: Stack, coming: Coming) -> Iterator[Batch]:
        """The batches of a stack one after another, on the device, each of the clients that still have one.

        The first of them may be staged already. When the last one is handed out, those of the stack after this one are begun.
        """
        kept = self.kept(stack.clients)
        camera = self.staging.put(cameras(stack.clients))
        camera = None if camera is None else camera.at(self.pixels.preprocess.size)  # once, not in every step
        staged = coming.take(self._key(stack, not kept)) or self._prefetched(stack, coming, pixels=not kept)
        last = max(steps(client, self.work, stack.epochs) for client in stack.clients)
        for number, sent in enumerate(staged, 1):
            if number == last and coming.after is not None:
                self.begin(coming.after, coming)
            batch = sent.take()
            k = len(batch.labels)
            yield self.on_device(stack.clients[:k], batch, kept, None if camera is None else camera.first(k))

    def begin(self, stack: Stack, coming: Coming) -> None:
        """Stage the first batches of a stack from now on, for `of_round`, unless it is not yet known whether they need images."""
        if self.pixels.augment != "none":
            coming.begin(self._key(stack, True), self._prefetched(stack, coming, pixels=True))
        elif self.stems.full:  # what is kept by now stays, and nothing more will be
            pixels = not self.kept(stack.clients)
            coming.begin(self._key(stack, pixels), self._prefetched(stack, coming, pixels))

    def _prefetched(self, stack: Stack, coming: Coming, pixels: bool) -> Prefetched[Sent[StagedBatch]]:
        plans = [plan(client, self.work, stack.round, stack.epochs) for client in stack.clients]
        packed = map(self.staging.pack, self.staged(stack, plans, pixels))
        return Prefetched(packed, coming.waiting, send=self.staging.send)

    def _key(self, stack: Stack, pixels: bool) -> tuple[object, ...]:
        return tuple(client.id for client in stack.clients), stack.round, stack.epochs, pixels

    def kept(self, clients: Sequence[Client]) -> list[Stem]:
        """The stem of each client's training images, where they are the same in every epoch and there is room; else nothing."""
        if self.pixels.augment != "none":
            return []
        found = []
        for client in clients:
            images = torch.arange(len(client.train))
            if self.stems.full and not self.stems.holds(("train", client.id), images):
                return []
            found.append(self.stems.get(("train", client.id), images, partial(self.whole_stem, client)))
        return found

    def whole_stem(self, client: Client, rows: Tensor) -> Stem:
        """The stem of the training images ``rows`` of a client."""
        parts = []
        for part in rows.split(WHOLE_STEM_BATCH):
            staged = self.pixels.stage(client.train[part], *self.pixels.draws(len(part), torch.Generator()))
            staged, camera = self.staging.put((staged, cameras([client])))
            parts.append(self.forward.image_stem(self.pixels.normalise(self.pixels.finish(staged)[None], camera)[0]))
        return parts[0].join(parts)

    def staged(self, stack: Stack, plans: Sequence[Sequence[Tensor]], pixels: bool = True) -> Iterator[StagedBatch]:
        """The host's part of the batches of a stack; without images if no ``pixels`` are wanted."""
        for number in range(max(map(len, plans))):
            k = sum(len(plan) > number for plan in plans)
            yield self.stage(stack._replace(clients=stack.clients[:k]), [plan[number] for plan in plans[:k]], number, pixels)

    def stage(self, stack: Stack, chosen: Sequence[Tensor], number: int, pixels: bool = True) -> StagedBatch:
        """The clients' next batches side by side, `padded` with images of weight 0; ``number``: of the step, from 0."""
        clients, size = stack.clients, self.padded(max(map(len, chosen)))
        rows = torch.stack([torch.cat([own, own[:1].expand(size - len(own))]) for own in chosen])
        there = torch.arange(size) < torch.tensor([[len(own)] for own in chosen])
        labels = torch.stack([client.labels[own] for client, own in zip(clients, rows, strict=True)])
        weights = there / there.sum(dim=1, keepdim=True)
        seeds = torch.tensor([rng.key(self.work.seed, "noise", *own) for own in self.steps_of_round(stack, number)])
        if not pixels:
            return StagedBatch(None, rows, labels, weights, seeds)
        # Each client's images follow those of the one before; padding repeats its first.
        first = torch.tensor([0, *map(len, chosen[:-1])]).cumsum(0)[:, None]
        rows = torch.where(there, first + torch.arange(size), first)
        return StagedBatch(self.staged_images(stack, chosen, number), rows, labels, weights, seeds)

    def steps_of_round(self, stack: Stack, number: int) -> list[tuple[int, int, int]]:
        """Of each client (round, id, number of its step in the round): what the draws of a step go by."""
        first = 0 if stack.epochs is None else stack.epochs.start
        return [(stack.round, client.id, first * steps(client, self.work, ONE_EPOCH) + number) for client in stack.clients]

    def padded(self, images: int) -> int:
        """To how many images a client the batches of a step are padded where the largest has so many.

        On a GPU few shapes come up in a run, since its kernels and what is planned or compiled for them go by shape: multiples of `STEP`,
        but no more than a full batch.
        """
        if self.forward.device.type == "cpu":
            return images
        return max(images, min(-(-images // STEP) * STEP, self.work.batch_size))

    def staged_images(self, stack: Stack, chosen: Sequence[Tensor], number: int) -> Staged:
        """The images of the clients' next batches, without padding."""
        generators = [rng.generator(self.work.seed, "augment", *own) for own in self.steps_of_round(stack, number)]
        drawn = [self.pixels.draws(len(own), gen) for own, gen in zip(chosen, generators, strict=True)]
        draws, flips = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        return self.pixels.stage(torch.cat([c.train[own] for c, own in zip(stack.clients, chosen, strict=True)]), draws, flips)

    def on_device(self, clients: Sequence[Client], staged: StagedBatch, kept: Sequence[Stem] = (), camera: Camera | None = None) -> Batch:
        """The batch out of a staged one on the device, seen through the clients' cameras (``camera``: they, where they are at hand).

        ``kept``: the stems of the clients' images in place of these.
        """
        rows, labels, weights, seeds = staged.rows, staged.labels, staged.weights, staged.seeds
        if staged.images is None:
            stems = [stem.take(own) for stem, own in zip(kept, rows, strict=False)]  # the clients still training come first
            return Batch(stems[0].join(stems), labels, weights, seeds)
        images = self.pixels.normalise(self.pixels.finish(staged.images)[rows], camera or cameras(clients))
        return Batch(images.flatten(0, 1), labels, weights, seeds)


def plan(client: Client, work: LocalWork, round_: int, epochs: range | None = None) -> list[Tensor]:
    """The client's batches of one round, or of these ``epochs`` of it: positions in its own training images, reshuffled every epoch."""
    batches: list[Tensor] = []
    for epoch in range(work.epochs) if epochs is None else epochs:
        gen = rng.generator(work.seed, "shuffle", round_, client.id, epoch)
        batches += torch.randperm(len(client.train), generator=gen)[: work.images(client)].split(work.batch_size)
    return batches


def by_steps(clients: Sequence[Client], work: LocalWork) -> list[Client]:
    """Clients with the most local steps first; equal ones in order of id."""
    return sorted(clients, key=lambda c: (-steps(c, work), c.id))


def steps(client: Client, work: LocalWork, epochs: range | None = None) -> int:
    """How many local steps the client takes in a round, or in these ``epochs`` of it."""
    return (work.epochs if epochs is None else len(epochs)) * -(-work.images(client) // work.batch_size)
