"""Protocols over the whole label space, on a source in memory, and the averages over domains."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch

from pfedmma.accuracy.metrics import COLUMNS, summarise
from pfedmma.data.partition.division import Division
from pfedmma.data.partition.federated import FederatedData
from pfedmma.data.partition.protocols import PROTOCOLS
from pfedmma.data.sources.base import Source, Split
from pfedmma.system.errors import UserError

SPREADING = ("iid", "dirichlet", "pachinko", "domains")
CLASSES = tuple(f"c{i}" for i in range(6))
DOMAINS = ("photo", "sketch", "paint")


def no_pixels(index: int) -> torch.Tensor:
    raise AssertionError("a partition looks at labels, never at pixels")


def split(each: int, domains: int = len(DOMAINS)) -> Split:
    """``each`` images of every class in every domain; classes and domains lie scattered."""
    labels = torch.arange(6).repeat(each * domains)
    return Split(labels, no_pixels, torch.arange(domains).repeat_interleave(6).repeat(each))


def source(train: int = 12, val: int = 2, test: int = 5) -> Source:
    return Source(
        "toy", CLASSES, {"train": split(train), "val": split(val), "test": split(test)}, domains=DOMAINS, coarse=(0, 0, 1, 1, 2, 2)
    )


def plain(train: int = 12) -> Source:
    """Without domains and superclasses."""
    return Source("plain", CLASSES, {name: Split(split(n).labels, no_pixels) for name, n in (("train", train), ("test", 4))})


def divide(protocol: str, clients: int = 6, seed: int = 0, test_split: str = "test", of: Source | None = None, **how: Any) -> FederatedData:
    """``how``: the other fields of a `Division`."""
    return PROTOCOLS[protocol](of or source(), Division(clients, seed, **how), test_split)


def held(federation: FederatedData) -> torch.Tensor:
    return torch.cat([client.train for client in federation.clients]).sort().values


@pytest.mark.parametrize("protocol", SPREADING)
def test_every_image_is_held_once_and_labels_belong_to_positions(protocol: str):
    toy = source()
    federation = divide(protocol, of=toy)
    labels = toy.splits["train"].labels
    assert [client.id for client in federation.clients] == list(range(6))
    assert held(federation).tolist() == list(range(len(labels)))
    for client in federation.clients:
        assert torch.equal(client.labels, labels[client.train])
        assert client.classes == tuple(sorted(set(client.labels.tolist())))


@pytest.mark.parametrize("protocol", SPREADING)
@pytest.mark.parametrize("test_split", ["test", "val"])
def test_base_is_the_whole_test_set_and_clients_share_it_out(protocol: str, test_split: str):
    toy = source()
    federation = divide(protocol, test_split=test_split, of=toy)
    base, labels = federation.base, toy.splits[test_split].labels
    assert base.split == test_split and base.classes == CLASSES and torch.equal(base.labels, labels)
    assert base.indices.tolist() == list(range(len(labels)))
    assert sorted(torch.cat([client.test for client in federation.clients]).tolist()) == list(range(len(labels)))
    assert federation.novel is None and federation.unseen is None and list(federation.sets()) == ["base"]


@pytest.mark.parametrize("protocol", SPREADING)
def test_seeds(protocol: str):
    one, again, other = (divide(protocol, seed=seed, shots=4) for seed in (1, 1, 2))

    def content(federation: FederatedData) -> list[tuple[list[int], list[int]]]:
        return [(client.train.tolist(), client.test.tolist()) for client in federation.clients]

    assert content(one) == content(again) != content(other)


@pytest.mark.parametrize("protocol", SPREADING)
def test_shots_are_drawn_for_each_class_of_each_domain(protocol: str):
    toy = source()
    federation = divide(protocol, shots=3, of=toy)
    train = toy.splits["train"]
    positions = held(federation)
    assert len(positions.unique()) == len(positions) == 3 * 6 * 3
    pairs = train.labels[positions] * 3 + train.domain_of(positions)
    assert pairs.bincount(minlength=18).tolist() == [3] * 18


def test_shots_without_domains_are_drawn_for_each_class():
    federation = divide("iid", shots=5, of=plain())
    assert torch.cat([client.labels for client in federation.clients]).bincount().tolist() == [5] * 6
    assert all(client.domain is None for client in federation.clients)


def test_too_many_shots_name_class_and_domain():
    with pytest.raises(UserError, match=r"^data\.shots: class 'c0' of domain 'photo' has 12 training images, fewer than 13 shots"):
        divide("domains", shots=13)
    with pytest.raises(UserError, match=r"^data\.shots: class 'c0' has 36 training images, fewer than 37 shots"):
        divide("dirichlet", shots=37, of=plain())


def test_clients_of_a_domain_hold_only_its_images():
    toy = source()
    federation = divide("domains", clients=6, of=toy)
    assert [client.domain for client in federation.clients] == [name for name in DOMAINS for _ in range(2)]
    for client in federation.clients:
        number = DOMAINS.index(client.domain or "")
        assert set(toy.splits["train"].domain_of(client.train).tolist()) == {number}
        assert set(toy.splits["test"].domain_of(federation.base.indices[client.test]).tolist()) <= {number}


def test_clients_of_two_domains_are_skewed_in_different_ways():
    federation = divide("domains", clients=6)
    profiles = [client.labels.bincount(minlength=6).tolist() for client in federation.clients]
    assert profiles[:2] != profiles[2:4] != profiles[4:]


@pytest.mark.parametrize("protocol", SPREADING)
@pytest.mark.parametrize("shots", [0, 4])
@pytest.mark.parametrize("out", DOMAINS)
def test_a_held_out_domain_is_the_unseen_set_and_nobody_holds_it(protocol: str, shots: int, out: str):
    toy = source()
    federation = divide(protocol, clients=4, shots=shots, held_out=out, of=toy)
    number, train, test = DOMAINS.index(out), toy.splits["train"], toy.splits["test"]
    assert not (train.domain_of(held(federation)) == number).any()
    assert out not in [client.domain for client in federation.clients]
    base, unseen = federation.base, federation.unseen
    assert unseen is not None and unseen.split == "test" and unseen.classes == CLASSES
    # Base and unseen share out the test split by domain.
    assert unseen.indices.tolist() == (test.domain_of(torch.arange(90)) == number).nonzero().squeeze(1).tolist()
    assert sorted(base.indices.tolist() + unseen.indices.tolist()) == list(range(90))
    for images in (base, unseen):
        assert torch.equal(images.labels, test.labels[images.indices])
    # A client's test positions count within the base set, which lacks the held-out domain.
    assert sorted(torch.cat([client.test for client in federation.clients]).tolist()) == list(range(len(base.indices)))
    if protocol == "domains":
        for client in federation.clients:
            assert {DOMAINS[d] for d in test.domain_of(base.indices[client.test]).tolist()} <= {client.domain}


def test_shots_are_not_asked_of_the_held_out_domain():
    # Its training images are never used, so that it need not have enough of them.
    toy = source()
    train = toy.splits["train"]
    keep = (train.domain_of(torch.arange(len(train.labels))) != 1).nonzero().squeeze(1)
    assert train.domains is not None
    few = dataclasses.replace(toy, splits=toy.splits | {"train": Split(train.labels[keep], no_pixels, train.domains[keep])})
    federation = divide("domains", clients=2, shots=3, held_out="sketch", of=few)
    assert len(held(federation)) == 2 * 6 * 3
    with pytest.raises(UserError, match="class 'c0' of domain 'sketch' has 0 training images"):
        divide("domains", clients=3, shots=3, of=few)


@pytest.mark.parametrize(
    ("clients", "out"), [(1, ""), (2, ""), (4, ""), (5, ""), (7, ""), (10, ""), (3, "paint"), (5, "paint"), (1, "paint")]
)
def test_clients_that_are_no_multiple_of_the_domains_name_a_count_that_works(clients: int, out: str):
    with pytest.raises(
        UserError, match=rf"^data\.clients: {clients} clients cannot be spread evenly over {2 if out else 3} domains"
    ) as error:
        divide("domains", clients=clients, held_out=out)
    named = re.search(r"data\.clients=(\d+) works$", str(error.value))
    assert named and "photo, sketch" in str(error.value)
    assert len(divide("domains", clients=int(named[1]), held_out=out).clients) == int(named[1])


def test_unknown_domain():
    for protocol in SPREADING:
        with pytest.raises(UserError, match=r"^data\.held_out_domain: toy has no domain 'photos'; it has photo, sketch, paint$"):
            divide(protocol, held_out="photos")


def test_the_only_domain_cannot_be_held_out():
    toy = source()
    one = dataclasses.replace(toy, domains=("photo",), splits={name: split(4, domains=1) for name in ("train", "test")})
    for protocol in ("domains", "iid"):
        with pytest.raises(UserError, match="'photo' is the only domain"):
            divide(protocol, clients=1, held_out="photo", of=one)


@pytest.mark.parametrize("held_out", ["", "photo"])
def test_domains_of_a_source_without_domains(held_out: str):
    with pytest.raises(UserError, match="plain has not; see domainnet or domainfolder"):
        divide("domains" if not held_out else "iid", held_out=held_out, of=plain())


def test_pachinko_of_a_source_without_superclasses():
    with pytest.raises(UserError, match=r"^data\.protocol: pachinko needs superclasses, which plain has not; it is for cifar100$"):
        divide("pachinko", of=plain())


@pytest.mark.parametrize("protocol", SPREADING)
def test_the_minimum_is_enforced(protocol: str):
    assert min(len(client.train) for client in divide(protocol, least=20).clients) >= 20
    with pytest.raises(UserError, match=r"data\.clients: .* lower data\.clients"):
        divide(protocol, clients=60, shots=3)  # 54 images, or 18 a domain for its 20
    with pytest.raises(UserError, match=r"data\.clients: .* lower data\.clients"):
        divide(protocol, least=100)


def test_a_split_that_is_not_there():
    with pytest.raises(UserError, match=r"^evaluation\.split: plain has no 'val' split; it has train, test$"):
        divide("iid", test_split="val", of=plain())


def test_averages_over_domains_by_hand():
    nan = float("nan")
    table = torch.full((5, len(COLUMNS)), nan, dtype=torch.float64)
    table[:, 0] = torch.tensor([90.0, 70.0, 40.0, nan, 20.0])  # the fourth client has no test image of its own
    table[:, 1] = torch.tensor([60.0, 50.0, 40.0, 30.0, 20.0])
    table[:, 3] = 10.0
    result = summarise(table, ["photo", "photo", "sketch", "sketch", "paint"]).to_json()
    assert result["domains"] == {"photo": 80.0, "sketch": 40.0, "paint": 20.0} and list(result["domains"]) == ["photo", "sketch", "paint"]
    assert result["domain_average"] == pytest.approx(140.0 / 3)  # of domains, not of clients
    assert (result["local"], result["base"], result["novel"], result["unseen"]) == (55.0, 40.0, None, 10.0)
    assert result["hm"] == pytest.approx(2 / (1 / 55 + 1 / 40)) and result["hm_base_novel"] is None
    assert (result["local_worst"], result["base_worst"], result["novel_worst"]) == (20.0, 20.0, None)


def test_without_domains_there_is_no_domain_average():
    result = summarise(torch.full((2, len(COLUMNS)), 50.0, dtype=torch.float64), [None, None]).to_json()
    assert "domains" not in result and "domain_average" not in result
