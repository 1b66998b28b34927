"""The base-to-novel protocols, on label counts that can be checked by hand."""

from __future__ import annotations

import random
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfedmma.data.partition.base_to_novel import base_to_novel, base_to_novel_dirichlet, split_classes
from pfedmma.data.partition.division import Division
from pfedmma.data.partition.federated import FederatedData
from pfedmma.data.sources.base import Source, Split
from pfedmma.system.errors import UserError


def no_pixels(index: int) -> torch.Tensor:
    raise AssertionError("a partition looks at labels, never at pixels")


def source(classes: int, train: int = 6, test: int = 3) -> Source:
    """``classes`` named c0, c1, ...; images of a class lie scattered (label = position mod classes), as in real split files."""
    sizes = {"train": train, "val": 1, "test": test}
    labels = {name: torch.arange(classes).repeat(count) for name, count in sizes.items()}
    return Source("toy", tuple(f"c{i}" for i in range(classes)), {name: Split(rows, no_pixels) for name, rows in labels.items()})


def divide(classes: int, clients: int, shots: int = 2, seed: int = 0, **sizes: int) -> FederatedData:
    return base_to_novel(source(classes, **sizes), Division(clients, seed, shots))


@pytest.mark.parametrize(("classes", "n_base"), [(2, 1), (7, 4), (8, 4), (101, 51), (120, 60)])
def test_base_is_the_first_half_rounded_up(classes: int, n_base: int):
    federation = divide(classes, clients=1)
    names = tuple(f"c{i}" for i in range(classes))
    assert federation.base.classes == names[:n_base]
    assert federation.novel is not None and federation.novel.classes == names[n_base:]


@pytest.mark.parametrize(
    ("n_base", "clients", "sizes"),
    [
        (10, 2, [5, 5]),
        (10, 3, [3, 3, 4]),  # round(3.33) = 3
        (10, 4, [2, 2, 2, 4]),  # round(2.5) = 2: Python rounds halves to even
        (7, 2, [4, 3]),  # round(3.5) = 4: the last may get fewer, too
        (11, 4, [3, 3, 3, 2]),  # round(2.75) = 3
        (50, 10, [5] * 10),  # Caltech101
        (51, 10, [5] * 9 + [6]),
    ],
)
def test_clients_get_runs_of_the_shuffled_classes(n_base: int, clients: int, sizes: list[int]):
    groups = split_classes(n_base, clients)
    assert [len(group) for group in groups] == sizes
    order = list(range(n_base))
    random.Random(2023).shuffle(order)  # the seed of the released code, whatever the run's seed
    for i, group in enumerate(groups):
        start = sum(sizes[:i])
        assert list(group) == sorted(order[start : start + sizes[i]])


def test_five_classes_by_hand():
    # random.Random(2023) shuffles 0..4 to 0 2 1 4 3; two clients, round(2.5) = 2: {0, 2} and the remainder.
    order = list(range(5))
    random.Random(2023).shuffle(order)
    assert order == [0, 2, 1, 4, 3]
    assert split_classes(5, 2) == [(0, 2), (1, 3, 4)]


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 300), st.integers(1, 400))
def test_every_split_covers_the_classes_or_names_a_client_count_that_works(n_base: int, clients: int):
    try:
        groups = split_classes(n_base, clients)
    except UserError as error:
        named = re.search(r"data\.clients=(\d+) works", str(error))
        assert named, error
        clients = int(named[1])
        groups = split_classes(n_base, clients)
    assert len(groups) == clients and all(groups)
    assert sorted(label for group in groups for label in group) == list(range(n_base))  # disjoint and covering


def test_a_client_without_a_class_is_an_error():
    # 10 classes, 7 clients: runs of round(1.43) = 1 give the last one 4. 6 clients: runs of 2, five of them use up all ten.
    assert [len(group) for group in split_classes(10, 7)] == [1, 1, 1, 1, 1, 1, 4]
    with pytest.raises(UserError, match=r"data\.clients: 10 base classes in runs of 2 leave some of 6 clients .* data\.clients=[57] works"):
        split_classes(10, 6)
    with pytest.raises(UserError, match=r"runs of 0 leave .* data\.clients=10 works"):
        split_classes(10, 25)


def test_one_class_cannot_be_divided():
    with pytest.raises(UserError, match="at least 2 classes; toy has 1"):
        divide(1, clients=1)


def test_shots_are_drawn_per_class():
    toy = source(8)
    federation = base_to_novel(toy, Division(2, 0, shots=3))
    labels = toy.splits["train"].labels
    for client in federation.clients:
        assert torch.equal(client.labels, labels[client.train])
        assert len(client.train.unique()) == len(client.train)
        assert client.labels.bincount(minlength=8).tolist() == [3 if label in client.classes else 0 for label in range(8)]


def test_the_seed_draws_the_shots():
    def drawn(seed: int) -> list[list[int]]:
        return [client.train.tolist() for client in divide(8, clients=2, shots=3, seed=seed, train=40).clients]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_the_shots_of_a_class_do_not_depend_on_who_holds_it():
    # So that runs with more or fewer clients learn from the same images.
    def drawn(clients: int) -> list[int]:
        return sorted(position for client in divide(8, clients, train=20).clients for position in client.train.tolist())

    assert drawn(1) == drawn(2) == drawn(4)


def test_zero_shots_take_every_image():
    toy = source(7)
    federation = base_to_novel(toy, Division(2, 0, shots=0))
    taken = torch.cat([client.train for client in federation.clients]).sort().values
    assert torch.equal(taken, (toy.splits["train"].labels < 4).nonzero().squeeze(1))


def test_too_many_shots_name_the_class_and_what_it_has():
    assert len(divide(4, clients=1, shots=6).clients[0].train) == 12
    with pytest.raises(UserError, match=r"data\.shots: class 'c[01]' has 6 training images, fewer than 7 shots"):
        divide(4, clients=1, shots=7)


@pytest.mark.parametrize("shots", [0, 1])
def test_a_class_without_training_images_is_an_error(shots: int):
    toy = source(4)
    empty = toy.splits | {"train": Split(torch.tensor([0, 0, 2, 3]), no_pixels)}
    with pytest.raises(UserError, match="class 'c1' has 0 training images"):
        base_to_novel(Source("toy", toy.class_names, empty), Division(1, 0, shots=shots))


def test_test_positions_are_the_base_test_images_of_own_classes():
    toy = source(9, test=4)
    federation = base_to_novel(toy, Division(2, 0, shots=1))
    for client in federation.clients:
        expected = [i for i, label in enumerate(federation.base.labels.tolist()) if label in client.classes]
        assert client.test.tolist() == expected and len(expected) == 4 * len(client.classes)
        # A position counts within the base set; the base set knows the image.
        images = federation.base.indices[client.test]
        assert set(toy.splits["test"].labels[images].tolist()) == set(client.classes)


def test_base_and_novel_sets_share_out_the_test_split():
    toy = source(9, test=4)
    federation = base_to_novel(toy, Division(2, 0, shots=1))
    base, novel = federation.base, federation.novel
    assert novel is not None and base.split == novel.split == "test"
    assert torch.cat([base.indices, novel.indices]).sort().values.tolist() == list(range(36))
    labels = toy.splits["test"].labels
    assert torch.equal(base.labels, labels[base.indices])
    assert torch.equal(novel.labels, labels[novel.indices] - 5)  # re-indexed from 0
    assert novel.labels.unique().tolist() == [0, 1, 2, 3] and novel.classes == ("c5", "c6", "c7", "c8")


def test_evaluation_can_use_the_validation_split():
    federation = base_to_novel(source(6), Division(1, 0, shots=1), test_split="val")
    assert federation.base.split == "val" and len(federation.base.indices) == 3


def test_an_empty_test_split_is_an_error():
    toy = source(4)
    none = toy.splits | {"test": Split(torch.tensor([0, 1, 1]), no_pixels)}
    with pytest.raises(UserError, match=r"'test' split of toy holds no image of its labels 2 \.\. 3"):
        base_to_novel(Source("toy", toy.class_names, none), Division(1, 0, shots=1))


def test_the_partition_does_not_touch_global_randomness():
    random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.random.get_rng_state()
    divide(8, clients=3)
    assert random.getstate() == before[0] and torch.equal(torch.random.get_rng_state(), before[1])


# Base classes with label skew.


def skewed(clients: int = 3, seed: int = 0, of: Source | None = None, test_split: str = "test", **how: float) -> FederatedData:
    """``how``: the other fields of a `Division`."""
    return base_to_novel_dirichlet(of or source(8), Division(clients, seed, **how), test_split)  # type: ignore[arg-type]


def counts(federation: FederatedData) -> list[list[int]]:
    """Training images of each base class that each client holds."""
    return [client.labels.bincount(minlength=len(federation.base.classes)).tolist() for client in federation.clients]


def test_without_skew_every_client_has_its_part_of_every_class():
    # Dirichlet(1e6) over three clients: a third each. 6 training images of a class are 2 2 2, 3 test images are 1 1 1.
    federation = skewed(beta=1e6)
    assert counts(federation) == [[2, 2, 2, 2]] * 3
    assert [federation.base.labels[client.test].bincount().tolist() for client in federation.clients] == [[1, 1, 1, 1]] * 3
    assert all(client.classes == (0, 1, 2, 3) for client in federation.clients)


def test_with_much_skew_a_class_is_with_few_clients():
    toy = source(40, train=30)
    federation = skewed(5, of=toy, beta=0.05)
    largest = torch.tensor(counts(federation)).amax(dim=0) / 30.0
    assert largest.mean() > 0.8, "of Dirichlet(0.05) over 5 clients the largest share is about 0.9"
    even = torch.tensor(counts(skewed(5, of=toy, beta=1e6)))
    assert bool((even == 6).all())


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_skewed_clients_hold_every_base_image_once_and_no_novel_one(beta: float):
    toy = source(9, test=4)
    federation = skewed(of=toy, beta=beta)
    labels = toy.splits["train"].labels
    assert torch.cat([client.train for client in federation.clients]).sort().values.tolist() == (labels < 5).nonzero().squeeze(1).tolist()
    assert torch.cat([client.test for client in federation.clients]).sort().values.tolist() == list(range(5 * 4))
    for client in federation.clients:
        assert torch.equal(client.labels, labels[client.train]) and torch.equal(client.train, client.train.sort().values)
        assert client.classes == tuple(client.labels.unique().tolist())


def test_skewed_test_images_are_in_the_proportions_of_the_training_images():
    toy = source(8, train=20, test=10)
    federation = skewed(of=toy, beta=0.5)
    for client, train in zip(federation.clients, counts(federation), strict=True):
        test = federation.base.labels[client.test].bincount(minlength=4)
        # 20 training and 10 test images of a class: half as many, each less than one from its exact part.
        assert bool((test - torch.tensor(train) / 2).abs().max() < 1.5)


def test_base_and_novel_are_those_of_the_protocol_without_skew():
    plain, federation = divide(9, clients=2), skewed(2, of=source(9))
    for name, images in plain.sets().items():
        other = federation.sets()[name]
        assert (other.split, other.classes) == (images.split, images.classes)
        assert torch.equal(other.indices, images.indices) and torch.equal(other.labels, images.labels)
    assert skewed(of=source(9, train=9), test_split="val").base.split == "val"


def test_shots_are_drawn_before_they_are_divided():
    toy = source(8, train=20)
    few = skewed(of=toy, shots=6)
    assert torch.tensor(counts(few)).sum(dim=0).tolist() == [6, 6, 6, 6]
    plain = divide(8, clients=2, shots=6, train=20)
    drawn, same = (torch.cat([client.train for client in one.clients]).sort().values for one in (few, plain))
    assert torch.equal(drawn, same), "the same images that clients with classes of their own share out"


def test_the_seed_draws_the_shares():
    def held(seed: int) -> list[list[int]]:
        return [client.train.tolist() for client in skewed(seed=seed, of=source(8, train=20)).clients]

    assert held(1) == held(1) != held(2)


def test_too_little_for_every_client_names_what_would_help():
    with pytest.raises(UserError, match=r"^data\.clients: 24 training images cannot give 5 clients 5 each; lower data\.clients"):
        skewed(5, least=5)
    # With so small a beta each of the four classes is with one client: the fifth has none, whatever is drawn.
    with pytest.raises(UserError, match=r"200 draws with data\.beta=0\.001 left one of 5 clients .*; raise data\.beta, or"):
        skewed(5, beta=0.001, least=4)
    with pytest.raises(UserError, match="base_to_novel needs at least 2 classes; toy has 1"):
        skewed(1, of=source(1))
