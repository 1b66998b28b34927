"""The protocols by name, and those over one whole label space: every client is trained and tested on its own share of all classes.

A further protocol is a function and its entry in `PROTOCOLS`.

Shape legend: n images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pfedmma.data.partition import skew
from pfedmma.data.partition.base_to_novel import base_to_novel, base_to_novel_dirichlet
from pfedmma.data.partition.division import Division
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.partition.shots import draw_shots
from pfedmma.data.sources.base import Source, Split
from pfedmma.system.errors import UserError

PACHINKO_ALPHA = 10.0


@dataclass(frozen=True)
class Images:
    """The images of one split that are divided: their positions in the split, their labels and their domains, each [n]."""

    positions: Tensor
    labels: Tensor
    domains: Tensor

    @classmethod
    def from_split(cls, split: Split, positions: Tensor) -> Images:
        """The images of ``split`` at these positions [n]."""
        return cls(positions, split.labels[positions], split.domain_of(positions))

    def __getitem__(self, rows: Tensor) -> Images:
        """Some of them, by their rows here [m] or by a mask [n]."""
        return Images(self.positions[rows], self.labels[rows], self.domains[rows])


@dataclass(frozen=True)
class Share:
    """What one client gets: rows of the training and of the test `Images`, and the domain that it belongs to, if any."""

    train: Tensor
    test: Tensor
    domain: str | None = None


ShareOut = Callable[[Source, Images, Images, Division], list[Share]]  # of the source, its training and its test images


def spread(share_out: ShareOut, source: Source, division: Division, test_split: str) -> FederatedData:
    """Divide all classes among clients, as ``share_out`` says.

    Local is tested on the client's share of the test images, Base on the whole test set; there are no novel classes. A domain that is
    held out is the unseen test set.

    Raises:
        UserError: the source lacks what the protocol needs, or no division gives every client ``division.least`` images.
    """
    split = source.split_for_tests(test_split)
    hidden = _held_out_domain(source, division.held_out)
    train = _in_use(source, division, hidden)
    everything = Images.from_split(split, torch.arange(len(split.labels)))
    test, unseen = everything[everything.domains != hidden], everything[everything.domains == hidden]
    clients = []
    for number, share in enumerate(share_out(source, train, test, division)):
        own = train[share.train]
        clients.append(Client(number, tuple(own.labels.unique().tolist()), own.positions, own.labels, share.test, domain=share.domain))
    base, rest = (EvaluationSet(test_split, source.class_names, images.positions, images.labels) for images in (test, unseen))
    return FederatedData(tuple(clients), base, None, source.template, rest if division.held_out else None)


def _iid(source: Source, train: Images, test: Images, division: Division) -> list[Share]:
    return [Share(*part) for part in skew.iid(train.labels, test.labels, division)]


def _dirichlet(source: Source, train: Images, test: Images, division: Division) -> list[Share]:
    return [Share(*part) for part in skew.dirichlet(train.labels, test.labels, division)]


def _pachinko(source: Source, train: Images, test: Images, division: Division) -> list[Share]:
    if source.coarse is None:
        raise UserError(f"data.protocol: pachinko needs superclasses, which {source.name} has not; it is for cifar100")
    return [Share(*part) for part in skew.pachinko(train.labels, test.labels, source.coarse, PACHINKO_ALPHA, division)]


def _domains(source: Source, train: Images, test: Images, division: Division) -> list[Share]:
    """The clients of each domain in turn: Dirichlet(beta) label skew inside the domain."""
    _require_domains(source)
    held = [name for name in source.domains if name != division.held_out]
    each = division.clients // len(held)
    if each * len(held) != division.clients:
        near = max(1, round(division.clients / len(held))) * len(held)
        raise UserError(
            f"data.clients: {division.clients} clients cannot be spread evenly over {len(held)} domains ({', '.join(held)}); "
            f"data.clients={near} works"
        )
    inside = dataclasses.replace(division, clients=each)
    shares = []
    for name in held:
        rows = [(images.domains == source.domains.index(name)).nonzero().squeeze(1) for images in (train, test)]
        parts = skew.dirichlet(train.labels[rows[0]], test.labels[rows[1]], inside, name)
        shares += [Share(rows[0][own_train], rows[1][own_test], name) for own_train, own_test in parts]
    return shares


PROTOCOLS: dict[str, Callable[[Source, Division, str], FederatedData]] = {  # name -> from the source and the name of the test split
    "base_to_novel": base_to_novel,
    "base_to_novel_dirichlet": base_to_novel_dirichlet,
    "iid": partial(spread, _iid),
    "dirichlet": partial(spread, _dirichlet),
    "pachinko": partial(spread, _pachinko),
    "domains": partial(spread, _domains),
}


def _in_use(source: Source, division: Division, hidden: int) -> Images:
    """The training images in use, by ascending positions: ``shots`` a class and domain, or all; none of the domain ``hidden``."""
    split = source.splits["train"]
    if division.shots == 0:
        images = Images.from_split(split, torch.arange(len(split.labels)))
        return images[images.domains != hidden]
    domains = [number for number in range(len(source.domains)) if number != hidden] if source.domains else [None]
    labels = range(len(source.class_names))
    drawn = [draw_shots(source, label, division.shots, division.seed, domain) for label in labels for domain in domains]
    return Images.from_split(split, torch.cat(drawn).sort().values)


def _held_out_domain(source: Source, name: str) -> int:
    """The number of the domain ``name``; -1, which no image has, where none is held out."""
    if not name:
        return -1
    _require_domains(source)
    if name not in source.domains:
        raise UserError(f"data.held_out_domain: {source.name} has no domain '{name}'; it has {', '.join(source.domains)}")
    if len(source.domains) == 1:
        raise UserError(f"data.held_out_domain: '{name}' is the only domain of {source.name}; no image would be left to train on")
    return source.domains.index(name)


def _require_domains(source: Source) -> None:
    if not source.domains:
        raise UserError(
            f"data.protocol: domains needs a source with domains, which {source.name} has not; see domainnet or domainfolder, or set "
            "data.domains for shapes"
        )
