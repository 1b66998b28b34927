"""Who holds what: clients, their images, and the sets that all of them are tested on.

Shape legend: n, m images, C clients, N images a client.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.data.partition.camera import Camera
from pfedmma.system.errors import UserError

_NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Client:
    """One client: its classes (base labels), its training images and its own test images.

    ``train`` [n] are positions in the source's training split, ``labels`` [n] their base labels; ``test`` [m] are positions in
    the federated data's base test set. ``camera`` is what the client sees its images through, None for plain images; ``domain`` the
    name of the domain it belongs to, None where there are no domains. ``new``: it takes part in no round, and comes when the last one is
    over.
    """

    id: int
    classes: tuple[int, ...]
    train: Tensor
    labels: Tensor
    test: Tensor
    camera: Camera | None = None
    domain: str | None = None
    new: bool = False


def cameras(clients: Sequence[Client]) -> Camera | None:
    """The clients' cameras, to apply to their images [C,N,...]; None where images are plain."""
    own = [client.camera for client in clients if client.camera is not None]
    return Camera.stacked(own) if own else None


def held_classes(clients: Sequence[Client], count: int) -> Tensor:
    """Which of the ``count`` base classes each client holds [C, count], bool."""
    held = torch.zeros(len(clients), count, dtype=torch.bool)
    for row, client in zip(held, clients, strict=True):
        row[list(client.classes)] = True
    return held


@dataclass(frozen=True)
class EvaluationSet:
    """Test images of one label space: ``indices`` into the source's ``split`` and their ``labels`` from 0, both [n]."""

    split: str
    classes: tuple[str, ...]
    indices: Tensor
    labels: Tensor


@dataclass(frozen=True)
class FederatedData:
    """A source divided among clients; every rank holds the same value.

    ``novel`` are classes that no client trains on, ``unseen`` is a domain that no client holds.
    """

    clients: tuple[Client, ...]
    base: EvaluationSet
    novel: EvaluationSet | None
    template: str
    unseen: EvaluationSet | None = None

    @property
    def participants(self) -> list[int]:
        """Ids of the clients that may take part in a round, and whose accuracies are a run's: all but the new ones."""
        return [client.id for client in self.clients if not client.new]

    def sets(self) -> dict[str, EvaluationSet]:
        """The test sets that every client is tested on, by the name of their accuracy."""
        named = {"base": self.base, "novel": self.novel, "unseen": self.unseen}
        return {name: images for name, images in named.items() if images is not None}


def count_new(clients: int, share: float) -> int:
    """How many of the clients are new."""
    return round(share * clients)


def with_new_clients(federated: FederatedData, share: float, seed: int) -> FederatedData:
    """The same data, in which ``share`` of the clients, drawn by the seed, are new."""
    total = len(federated.clients)
    drawn = set(torch.randperm(total, generator=rng.generator(seed, "new clients"))[: count_new(total, share)].tolist())
    clients = tuple(dataclasses.replace(client, new=client.id in drawn) for client in federated.clients)
    return dataclasses.replace(federated, clients=clients)


def without(federated: FederatedData, bad: Mapping[str, Tensor]) -> FederatedData:
    """The same data without the images at these positions of the source's splits {split: positions}.

    Raises:
        UserError: a client or a test set would be left without an image.
    """
    kept = {name: ~torch.isin(images.indices, bad.get(images.split, _NONE)) for name, images in federated.sets().items()}
    sets = {
        name: dataclasses.replace(images, indices=images.indices[kept[name]], labels=images.labels[kept[name]])
        for name, images in federated.sets().items()
    }
    renumbered = kept["base"].cumsum(0) - 1  # position of each base test image among those that are kept
    clients = []
    for client in federated.clients:
        good = ~torch.isin(client.train, bad.get("train", _NONE))
        test = renumbered[client.test[kept["base"][client.test]]]
        if not bool(good.any()):
            raise UserError(f"data.on_bad_image: none of the training images of client {client.id} can be read; repair them")
        labels = client.labels[good]
        held = tuple(label for label in client.classes if bool((labels == label).any()))
        clients.append(dataclasses.replace(client, classes=held, train=client.train[good], labels=labels, test=test))
    empty = next((name for name, images in sets.items() if len(images.indices) == 0), None)
    if empty:
        raise UserError(f"data.on_bad_image: none of the {empty} test images can be read; repair them")
    return dataclasses.replace(federated, clients=tuple(clients), base=sets["base"], novel=sets.get("novel"), unseen=sets.get("unseen"))
