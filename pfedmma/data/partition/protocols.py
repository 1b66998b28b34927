"""Protocols over one whole label space: every client is trained and tested on its own share of all classes."""

from __future__ import annotations

import torch
from torch import Tensor

from pfedmma.data.partition import skew
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.partition.shots import draw_shots
from pfedmma.data.sources.base import Source, Split
from pfedmma.system.errors import UserError

PACHINKO_ALPHA = 10.0


def spread(
    source: Source, protocol: str, clients: int, shots: int, beta: float, least: int, seed: int, test_split: str, held_out: str = ""
) -> FederatedData:
    """Divide all classes among clients by ``iid``, ``dirichlet``, ``pachinko`` or ``domains``.

    ``shots`` training images a class (and domain) are drawn first, 0 takes all. Local is tested on the client's share of the test images,
    Base on the whole test set; there are no novel classes. ``held_out`` names a domain that no client holds: it is the unseen test set.

    Raises:
        UserError: the source lacks what the protocol needs, or no division gives every client ``least`` images.
    """
    train, test = source.splits["train"], source.split_for_tests(test_split)
    number = _domain_number(source, held_out) if held_out else None
    kept_train, kept_test = _few(source, train, shots, seed, held_out), torch.arange(len(test.labels))
    unseen = None
    if number is not None:
        unseen = EvaluationSet(test_split, source.class_names, *_of(test, kept_test, number))
        kept_train, kept_test = (keep[split.domain_of(keep) != number] for keep, split in ((kept_train, train), (kept_test, test)))
    if protocol == "domains":
        parts, domains = _by_domain(source, train, test, kept_train, kept_test, clients, beta, least, seed, held_out)
    else:
        labels = train.labels[kept_train], test.labels[kept_test]
        parts, domains = _divide(source, protocol, *labels, clients, beta, least, seed), [None] * clients
    members = []
    for place, ((own_train, own_test), domain) in enumerate(zip(parts, domains, strict=True)):
        chosen = kept_train[own_train]
        labels_ = train.labels[chosen]
        members.append(Client(place, tuple(labels_.unique().tolist()), chosen, labels_, own_test, domain=domain))
    base = EvaluationSet(test_split, source.class_names, kept_test, test.labels[kept_test])
    return FederatedData(tuple(members), base, None, source.template, unseen)


def _divide(source: Source, protocol: str, train: Tensor, test: Tensor, clients: int, beta: float, least: int, seed: int) -> skew.Parts:
    if protocol == "iid":
        if len(train) < clients * least:
            raise UserError(f"data.clients: {len(train)} training images cannot give {clients} clients {least} each; lower data.clients")
        return skew.iid(train, test, clients, seed)
    if protocol == "dirichlet":
        return skew.dirichlet(train, test, clients, beta, seed, least)
    if source.coarse is None:
        raise UserError(f"data.protocol: pachinko needs superclasses, which {source.name} has not; it is for cifar100")
    return skew.pachinko(train, test, source.coarse, clients, beta, PACHINKO_ALPHA, seed, least)


def _by_domain(
    source: Source,
    train: Split,
    test: Split,
    kept_train: Tensor,
    kept_test: Tensor,
    clients: int,
    beta: float,
    least: int,
    seed: int,
    out: str,
) -> tuple[skew.Parts, list[str | None]]:
    """The clients of each domain in turn: Dirichlet(beta) label skew inside the domain."""
    _require_domains(source)
    domains = [name for name in source.domains if name != out]
    each = clients // len(domains)
    if each * len(domains) != clients:
        near = max(1, round(clients / len(domains))) * len(domains)
        raise UserError(
            f"data.clients: {clients} clients cannot be spread evenly over {len(domains)} domains ({', '.join(domains)}); "
            f"data.clients={near} works"
        )
    parts: skew.Parts = []
    for name in domains:
        number = source.domains.index(name)
        rows = [(split.domain_of(keep) == number).nonzero().squeeze(1) for split, keep in ((train, kept_train), (test, kept_test))]
        labels = train.labels[kept_train[rows[0]]], test.labels[kept_test[rows[1]]]
        for own_train, own_test in skew.dirichlet(*labels, each, beta, seed, least, name):
            parts.append((rows[0][own_train], rows[1][own_test]))
    return parts, [name for name in domains for _ in range(each)]


def _few(source: Source, train: Split, shots: int, seed: int, out: str) -> Tensor:
    """Positions of the training images in use, ascending: ``shots`` a class and domain (but none of the domain ``out``), or all."""
    if shots == 0:
        return torch.arange(len(train.labels))
    groups = [number for number, name in enumerate(source.domains) if name != out] if source.domains else [None]
    drawn = [draw_shots(source, label, shots, seed, domain) for label in range(len(source.class_names)) for domain in groups]
    return torch.cat(drawn).sort().values


def _of(split: Split, keep: Tensor, number: int) -> tuple[Tensor, Tensor]:
    rows = keep[split.domain_of(keep) == number]
    return rows, split.labels[rows]


def _require_domains(source: Source) -> None:
    if not source.domains:
        raise UserError(f"data.protocol: domains needs a source with domains, which {source.name} has not; see domainnet or domainfolder")


def _domain_number(source: Source, name: str) -> int:
    _require_domains(source)
    if name not in source.domains:
        raise UserError(f"data.held_out_domain: {source.name} has no domain '{name}'; it has {', '.join(source.domains)}")
    if len(source.domains) == 1:
        raise UserError(f"data.held_out_domain: '{name}' is the only domain of {source.name}; no image would be left to train on")
    return source.domains.index(name)
