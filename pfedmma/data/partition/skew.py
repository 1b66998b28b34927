"""Dividing the images of a label space among clients, evenly or unevenly.

Each protocol takes the labels of the training and of the test images, and returns for every client the positions of its own among
both. Every image goes to exactly one client; test images are divided in the same proportions as training images. All draws depend on
the seed alone.

Shape legend: K clients, L labels, n images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.data.partition.division import Division
from pfedmma.system.errors import UserError

Parts = list[tuple[Tensor, Tensor]]  # (positions [n] of training images, of test images) of each client, ascending
TRIES = 200


def iid(train: Tensor, test: Tensor, division: Division) -> Parts:
    """Shuffle and deal evenly: sizes differ by at most one.

    Args:
        train, test: labels [n].

    Raises:
        UserError: there are too few images for all clients.
    """
    _require_enough(len(train), division)

    def deal(name: str, labels: Tensor) -> list[Tensor]:
        order = torch.randperm(len(labels), generator=rng.generator(division.seed, "iid", name))
        return [part.sort().values for part in order.tensor_split(division.clients)]

    return list(zip(deal("train", train), deal("test", test), strict=True))


def dirichlet(train: Tensor, test: Tensor, division: Division, *ids: int | str) -> Parts:
    """Each class is divided by its own Dirichlet(beta) draw over clients (Hsu et al. 2019).

    Args:
        train, test: labels [n].
        ids: what further tells this draw from others of the same seed.

    Raises:
        UserError: there are too few images, or no draw of `TRIES` gives every client enough.
    """
    labels = torch.cat([train, test]).unique().tolist()

    def draw(attempt: int) -> Parts:
        gen = _numpy_generator(division.seed, "dirichlet", *ids, attempt)
        shares = {label: gen.dirichlet([division.beta] * division.clients) for label in labels}
        return _by_class(train, test, shares, gen, _numpy_generator(division.seed, "dirichlet ties", *ids, attempt))

    return _until_large_enough(draw, len(train), division)


def pachinko(train: Tensor, test: Tensor, coarse: Sequence[int], alpha: float, division: Division) -> Parts:
    """Pachinko allocation (Reddi et al. 2021): a client draws superclasses by Dirichlet(beta), classes in them by Dirichlet(alpha).

    Args:
        train, test: labels [n].
        coarse: the superclass of each of L labels.

    Raises:
        UserError: there are too few images, or no draw of `TRIES` gives every client enough.
    """
    tree = [np.flatnonzero(np.asarray(coarse) == group) for group in sorted(set(coarse))]

    def draw(attempt: int) -> Parts:
        gen = _numpy_generator(division.seed, "pachinko", attempt)
        counts = _pachinko_counts(torch.bincount(train, minlength=len(coarse)).numpy(), tree, alpha, division, gen)
        shares = {label: _shares(counts[:, label]) for label in range(len(coarse))}
        return _by_class(train, test, shares, gen, _numpy_generator(division.seed, "pachinko ties", attempt))

    return _until_large_enough(draw, len(train), division)


def _pachinko_counts(left: np.ndarray, tree: list[np.ndarray], alpha: float, division: Division, gen: np.random.Generator) -> np.ndarray:
    """How many images of each label each client draws [K, L], of ``left`` [L]; a label that is used up is drawn no more."""
    left = left.copy()
    counts = np.zeros((division.clients, len(left)), dtype=np.int64)
    quotas = [len(part) for part in np.array_split(np.arange(int(left.sum())), division.clients)]
    for client, quota in enumerate(quotas):
        top = gen.dirichlet([division.beta] * len(tree))
        below = [gen.dirichlet([alpha] * len(leaves)) for leaves in tree]
        weight = np.zeros(len(left))
        for share, inner, leaves in zip(top, below, tree, strict=True):
            weight[leaves] = share * inner
        while quota > 0:
            open_ = np.where(left > 0, np.maximum(weight, 1e-12), 0.0)
            drawn = np.minimum(gen.multinomial(quota, open_ / open_.sum()), left)
            counts[client] += drawn
            left -= drawn
            quota -= int(drawn.sum())
    return counts


def _shares(counts: np.ndarray) -> np.ndarray:
    """Counts [K] as shares of their sum; equal ones where there is nothing to go by."""
    total = counts.sum()
    return counts / total if total else np.full(len(counts), 1.0 / len(counts))


def _by_class(train: Tensor, test: Tensor, shares: dict[int, np.ndarray], gen: np.random.Generator, ties: np.random.Generator) -> Parts:
    """Divide the images of each label, training and test images alike, by its shares [K]."""
    # The clients in the order in which they come where shares are equal, one order a label, so that none is always first.
    orders = {label: ties.permutation(len(share)) for label, share in shares.items()}
    return list(zip(*(_cut_each_class(labels, shares, gen, orders) for labels in (train, test)), strict=True))


def _cut_each_class(labels: Tensor, shares: dict[int, np.ndarray], gen: np.random.Generator, orders: dict[int, np.ndarray]) -> list[Tensor]:
    """[n] labels -> positions of each client, ascending."""
    held: list[list[Tensor]] = [[] for _ in next(iter(shares.values()))]
    for label, share in shares.items():
        positions = (labels == label).nonzero().squeeze(1)
        positions = positions[torch.from_numpy(gen.permutation(len(positions)))]
        cuts = largest_remainder(share, len(positions), orders[label]).cumsum()[:-1]
        for client, part in enumerate(torch.tensor_split(positions, torch.from_numpy(cuts))):
            held[client].append(part)
    return [torch.cat(parts).sort().values for parts in held]


def largest_remainder(share: np.ndarray, count: int, order: np.ndarray) -> np.ndarray:
    """How many of ``count`` each client gets [K] by its ``share`` [K] of 1: each less than one from its exact part.

    What is left after rounding down goes to the largest remainders, of equal ones to the first in ``order`` [K].
    """
    exact = share / max(share.sum(), np.finfo(float).tiny) * count
    whole = np.floor(exact + 1e-9).astype(np.int64)
    left = count - int(whole.sum())
    by_remainder = order[np.argsort(-np.round(exact - whole, 9)[order], kind="stable")]
    whole[by_remainder[:left]] += 1
    return whole


def _until_large_enough(draw: Callable[[int], Parts], images: int, division: Division) -> Parts:
    """The first of `TRIES` draws that gives every client enough of the training images."""
    _require_enough(images, division)
    for attempt in range(TRIES):
        parts = draw(attempt)
        if min(len(train) for train, _ in parts) >= division.least:
            return parts
    raise UserError(
        f"data.clients: {TRIES} draws with data.beta={division.beta:g} left one of {division.clients} clients with fewer than "
        f"{division.least} training images; raise data.beta, or lower data.clients or data.min_samples"
    )


def _require_enough(images: int, division: Division) -> None:
    if images < division.clients * division.least:
        raise UserError(
            f"data.clients: {images} training images cannot give {division.clients} clients {division.least} each; lower data.clients"
        )


def _numpy_generator(seed: int, purpose: str, *ids: int | str) -> np.random.Generator:
    """As `rng.generator`: torch draws from no Dirichlet distribution by a generator of its own."""
    return np.random.Generator(np.random.PCG64(rng.key(seed, purpose, *ids)))
