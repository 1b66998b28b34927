"""Who holds what: protocols that divide a source among clients. A partition depends on the seed alone."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.data.sources.base import Source
from pfedmma.system.errors import UserError

_NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Client:
    """One client: its classes (base labels), its training images and its own test images.

    ``train`` [n] are positions in the source's training split, ``labels`` [n] their base labels; ``test`` [m] are positions in
    the federation's base test set. ``camera`` [3,3] is the colour matrix of the client's own looks, None for plain images;
    ``domain`` the name of the domain it belongs to, None where there are no domains.
    """

    id: int
    classes: tuple[int, ...]
    train: Tensor
    labels: Tensor
    test: Tensor
    camera: Tensor | None = None
    domain: str | None = None


def cameras(clients: Sequence[Client]) -> Tensor | None:
    """The clients' colour matrices [C,1,3,3], to apply to their images [C,N,...]; None where images are plain."""
    matrices = [client.camera for client in clients if client.camera is not None]
    return torch.stack(matrices)[:, None] if matrices else None


@dataclass(frozen=True)
class EvaluationSet:
    """Test images of one label space: ``indices`` into the source's ``split`` and their ``labels`` from 0, both [n]."""

    split: str
    classes: tuple[str, ...]
    indices: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Federation:
    """A source divided among clients; every rank holds the same value.

    ``novel`` are classes that no client trains on, ``unseen`` is a domain that no client holds.
    """

    clients: tuple[Client, ...]
    base: EvaluationSet
    novel: EvaluationSet | None
    template: str
    unseen: EvaluationSet | None = None

    def sets(self) -> dict[str, EvaluationSet]:
        """The test sets that every client is tested on, by the name of their accuracy."""
        named = {"base": self.base, "novel": self.novel, "unseen": self.unseen}
        return {name: images for name, images in named.items() if images is not None}


def without(federation: Federation, bad: Mapping[str, Tensor]) -> Federation:
    """The federation without the images at these positions of the source's splits {split: positions}.

    Raises:
        UserError: a client or a test set would be left without an image.
    """
    kept = {name: ~torch.isin(images.indices, bad.get(images.split, _NONE)) for name, images in federation.sets().items()}
    sets = {
        name: dataclasses.replace(images, indices=images.indices[kept[name]], labels=images.labels[kept[name]])
        for name, images in federation.sets().items()
    }
    place = kept["base"].cumsum(0) - 1  # of each base test image among those that are kept
    clients = []
    for client in federation.clients:
        good = ~torch.isin(client.train, bad.get("train", _NONE))
        test = place[client.test[kept["base"][client.test]]]
        if not bool(good.any()):
            raise UserError(f"data.on_bad_image: none of the training images of client {client.id} can be read; repair them")
        labels = client.labels[good]
        held = tuple(label for label in client.classes if bool((labels == label).any()))
        clients.append(dataclasses.replace(client, classes=held, train=client.train[good], labels=labels, test=test))
    empty = next((name for name, images in sets.items() if len(images.indices) == 0), None)
    if empty:
        raise UserError(f"data.on_bad_image: none of the {empty} test images can be read; repair them")
    return dataclasses.replace(federation, clients=tuple(clients), base=sets["base"], novel=sets.get("novel"), unseen=sets.get("unseen"))


def base_to_novel(source: Source, clients: int, shots: int, seed: int, test_split: str = "test") -> Federation:
    """Train on the first half of the labels, disjoint classes a client; test on own, base and novel classes.

    Base is the first ceil(n/2) labels in label order. Base classes, shuffled with ``random.Random(2023)``, are cut into runs of
    round(n_base / clients); the last client takes the remainder. ``shots`` images a class are drawn by seed, 0 takes all.

    Raises:
        UserError: a client would get no class, or a class has fewer than ``shots`` training images.
    """
    total = len(source.class_names)
    n_base = -(-total // 2)
    if total < 2:
        raise UserError(f"data.protocol: base_to_novel needs at least 2 classes; {source.name} has {total}")
    base = _evaluation_set(source, test_split, 0, n_base)
    groups = split_classes(n_base, clients)
    members = []
    for number, classes in enumerate(groups):
        chosen = torch.cat([draw_shots(source, label, shots, seed) for label in classes])
        own = torch.isin(base.labels, torch.tensor(classes)).nonzero().squeeze(1)
        members.append(Client(number, classes, chosen, source.splits["train"].labels[chosen], own))
    return Federation(tuple(members), base, _evaluation_set(source, test_split, n_base, total), source.template)


def split_classes(n_base: int, clients: int) -> list[tuple[int, ...]]:
    """The base labels of each client, sorted."""
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


def draw_shots(source: Source, label: int, shots: int, seed: int, domain: int | None = None) -> Tensor:
    """Positions of ``shots`` training images of a class (of one domain, if given), ascending; 0 takes all."""
    split = source.splits["train"]
    wanted = split.labels == label
    if domain is not None:
        wanted &= split.domain_of(torch.arange(len(wanted))) == domain
    pool = wanted.nonzero().squeeze(1)
    count = shots or max(1, len(pool))
    if count > len(pool):
        of = "" if domain is None else f" of domain '{source.domains[domain]}'"
        raise UserError(
            f"data.shots: class '{source.class_names[label]}'{of} has {len(pool)} training images, fewer than {count} shots; "
            f"lower data.shots, or 0 takes all there are"
        )
    ids = (label,) if domain is None else (label, source.domains[domain])
    chosen = torch.randperm(len(pool), generator=rng.generator(seed, "shots", *ids))[:count]
    return pool[chosen].sort().values


def _evaluation_set(source: Source, split: str, start: int, stop: int) -> EvaluationSet:
    labels = source.split_for_tests(split).labels
    indices = ((labels >= start) & (labels < stop)).nonzero().squeeze(1)
    if len(indices) == 0:
        raise UserError(f"data.root: the '{split}' split of {source.name} holds no image of its labels {start} .. {stop - 1}")
    return EvaluationSet(split, source.class_names[start:stop], indices, labels[indices] - start)
