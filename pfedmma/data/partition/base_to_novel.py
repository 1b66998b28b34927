"""The protocols of base and novel classes: half of the labels are trained on, the others are novel.

``base_to_novel``: clients hold disjoint base classes. ``base_to_novel_dirichlet``: they hold uneven shares of all base classes.
"""

from __future__ import annotations

import itertools
import random

import torch

from pfedmma.data.partition import skew
from pfedmma.data.partition.division import Division
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.partition.shots import draw_shots
from pfedmma.data.sources.base import Source
from pfedmma.system.errors import UserError


def base_to_novel(source: Source, division: Division, test_split: str = "test") -> FederatedData:
    """Train on the first half of the labels, disjoint classes a client; test on own, base and novel classes.

    Base is the first ceil(n/2) labels in label order. Base classes, shuffled with ``random.Random(2023)``, are cut into runs of
    round(n_base / clients); the last client takes the remainder. ``division.shots`` images a class are drawn by seed, 0 takes all.

    Raises:
        UserError: a client would get no class, or a class has fewer than ``division.shots`` training images.
    """
    base = _base(source, test_split)
    clients = []
    for number, classes in enumerate(split_classes(len(base.classes), division.clients)):
        train = torch.cat([draw_shots(source, label, division.shots, division.seed) for label in classes])
        test = torch.isin(base.labels, torch.tensor(classes)).nonzero().squeeze(1)
        clients.append(Client(number, classes, train, source.splits["train"].labels[train], test))
    return FederatedData(tuple(clients), base, _novel(source, test_split), source.template)


def base_to_novel_dirichlet(source: Source, division: Division, test_split: str = "test") -> FederatedData:
    """Base and novel as in `base_to_novel`, base classes divided by label skew: each by its own Dirichlet(``division.beta``) draw.

    Local is tested on the client's share of the base test images, in the proportions of its training images; Base and Novel on the whole
    base and novel test sets. A client may hold images of any base class, and several clients of the same. ``division.shots`` images a
    class are divided, 0 for all.

    Raises:
        UserError: as `base_to_novel`, or no draw gives every client ``division.least`` images.
    """
    base = _base(source, test_split)
    drawn = [draw_shots(source, label, division.shots, division.seed) for label in range(len(base.classes))]
    train = torch.cat(drawn).sort().values
    labels = source.splits["train"].labels[train]
    clients = []
    for number, (own, test) in enumerate(skew.dirichlet(labels, base.labels, division)):
        clients.append(Client(number, tuple(labels[own].unique().tolist()), train[own], labels[own], test))
    return FederatedData(tuple(clients), base, _novel(source, test_split), source.template)


def _base(source: Source, test_split: str) -> EvaluationSet:
    """The test set of the base classes."""
    total = len(source.class_names)
    if total < 2:
        raise UserError(f"data.protocol: base_to_novel needs at least 2 classes; {source.name} has {total}")
    return _evaluation_set(source, test_split, 0, _base_classes(total))


def _novel(source: Source, test_split: str) -> EvaluationSet:
    total = len(source.class_names)
    return _evaluation_set(source, test_split, _base_classes(total), total)


def _base_classes(total: int) -> int:
    """How many of so many classes are base classes: half of them, rounded up."""
    return -(-total // 2)


def split_classes(n_base: int, clients: int) -> list[tuple[int, ...]]:
    """The base labels 0 .. n_base - 1 of each client, sorted.

    Raises:
        UserError: a client would get no class; names the nearest number of clients that works.
    """
    run = round(n_base / clients)
    if not _every_client_has_one(n_base, clients):
        near = min((k for k in range(1, n_base + 1) if _every_client_has_one(n_base, k)), key=lambda k: abs(k - clients))
        raise UserError(
            f"data.clients: {n_base} base classes in runs of {run} leave some of {clients} clients without a class; "
            f"data.clients={near} works"
        )
    order = list(range(n_base))
    random.Random(2023).shuffle(order)
    cuts = [run * i for i in range(clients)] + [n_base]
    return [tuple(sorted(order[a:b])) for a, b in itertools.pairwise(cuts)]


def _every_client_has_one(n_base: int, clients: int) -> bool:
    run = round(n_base / clients)
    return run >= 1 and run * (clients - 1) < n_base


def _evaluation_set(source: Source, split: str, start: int, stop: int) -> EvaluationSet:
    labels = source.split_for_tests(split).labels
    indices = ((labels >= start) & (labels < stop)).nonzero().squeeze(1)
    if len(indices) == 0:
        raise UserError(f"data.root: the '{split}' split of {source.name} holds no image of its labels {start} .. {stop - 1}")
    return EvaluationSet(split, source.class_names[start:stop], indices, labels[indices] - start)
