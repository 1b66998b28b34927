"""Dividing the images of a label space among clients, evenly or unevenly.

Each function returns, for every client, the positions of its training and of its test images. Every image goes to exactly
one client; test images are divided in the same proportions as training images. All draws depend on the seed alone.

Shape legend: K clients, L labels, n images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.system.errors import UserError

Parts = list[tuple[Tensor, Tensor]]  # (train positions, test positions) of each client
TRIES = 200


def numpy_generator(seed: int, purpose: str, *ids: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(rng.key(seed, purpose, *ids)))


def iid(train: Tensor, test: Tensor, clients: int, seed: int) -> Parts:
    """Shuffle and deal evenly: sizes differ by at most one."""
    dealt = [
        [part.sort().values for part in torch.randperm(len(labels), generator=rng.generator(seed, "iid", name)).tensor_split(clients)]
        for name, labels in (("train", train), ("test", test))
    ]
    return list(zip(*dealt, strict=True))


def dirichlet(train: Tensor, test: Tensor, clients: int, beta: float, seed: int, least: int, *ids: int | str) -> Parts:
    """Each class is divided by its own Dirichlet(beta) draw over clients (Hsu et al. 2019).

    Args:
        train, test: labels [n]. least: training images that every client must have; the draw is repeated until they do.

    Raises:
        UserError: there are too few images, or no draw of `TRIES` gives every client ``least``.
    """
    labels = torch.cat([train, test]).unique().tolist()

    def draw(attempt: int) -> Parts:
        gen = numpy_generator(seed, "dirichlet", *ids, attempt)
        shares = {label: gen.dirichlet([beta] * clients) for label in labels}
        return [
            (own_train, own_test)
            for own_train, own_test in zip(
                *(_by_class(where, shares, clients, gen) for where in (train, test)),
                strict=True,
            )
        ]

    return _until_large_enough(draw, len(train), clients, least, f"data.beta={beta:g}")


def pachinko(train: Tensor, test: Tensor, coarse: Sequence[int], clients: int, beta: float, alpha: float, seed: int, least: int) -> Parts:
    """Pachinko allocation (Reddi et al. 2021): a client draws superclasses by Dirichlet(beta), classes in them by Dirichlet(alpha).

    Args:
        coarse: the superclass of each of L labels.
    """
    tree = [np.flatnonzero(np.asarray(coarse) == group) for group in sorted(set(coarse))]

    def draw(attempt: int) -> Parts:
        gen = numpy_generator(seed, "pachinko", attempt)
        counts = _pachinko_counts(torch.bincount(train, minlength=len(coarse)).numpy(), tree, clients, beta, alpha, gen)
        shares = {label: _shares(counts[:, label]) for label in range(len(coarse))}
        return list(zip(*(_by_class(where, shares, clients, gen) for where in (train, test)), strict=True))

    return _until_large_enough(draw, len(train), clients, least, f"data.beta={beta:g}")


def _pachinko_counts(
    left: np.ndarray, tree: list[np.ndarray], clients: int, beta: float, alpha: float, gen: np.random.Generator
) -> np.ndarray:
    """How many images of each label each client draws [K, L]; a label that is used up is drawn no more."""
    left = left.copy()
    counts = np.zeros((clients, len(left)), dtype=np.int64)
    quotas = [len(part) for part in np.array_split(np.arange(int(left.sum())), clients)]
    for client, quota in enumerate(quotas):
        top = gen.dirichlet([beta] * len(tree))
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
    total = counts.sum()
    return counts / total if total else np.full(len(counts), 1.0 / len(counts))


def _by_class(labels: Tensor, shares: dict[int, np.ndarray], clients: int, gen: np.random.Generator) -> list[Tensor]:
    """Divide each class by its shares: [n] labels -> positions of each client, ascending."""
    held: list[list[Tensor]] = [[] for _ in range(clients)]
    for label, share in shares.items():
        where = (labels == label).nonzero().squeeze(1)
        where = where[torch.from_numpy(gen.permutation(len(where)))]
        cuts = np.rint(np.cumsum(share)[:-1] * len(where)).astype(np.int64)
        for client, part in enumerate(torch.tensor_split(where, torch.from_numpy(cuts))):
            held[client].append(part)
    return [torch.cat(parts).sort().values for parts in held]


def _until_large_enough(draw: Callable[[int], Parts], images: int, clients: int, least: int, knob: str) -> Parts:
    if images < clients * least:
        raise UserError(f"data.clients: {images} training images cannot give {clients} clients {least} each; lower data.clients")
    for attempt in range(TRIES):
        parts = draw(attempt)
        if min(len(train) for train, _ in parts) >= least:
            return parts
    raise UserError(
        f"data.clients: {TRIES} draws with {knob} left one of {clients} clients with fewer than {least} training images; "
        f"raise data.beta, or lower data.clients or data.min_samples"
    )
