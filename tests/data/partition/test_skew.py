"""The partitioners: every image to exactly one client, by seed alone, as even or as skewed as asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfedmma.data.partition import skew
from pfedmma.data.partition.division import Division
from pfedmma.system.errors import UserError

BOUNDED = settings(deadline=None, max_examples=30)
LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=120)
CLIENTS = st.integers(1, 8)
SEEDS = st.integers(0, 2**31)
BETAS = st.sampled_from([0.05, 0.3, 1.0, 10.0, 1000.0])
COARSE = (0, 0, 1, 1, 2, 2)


def balanced(classes: int, each: int) -> Tensor:
    """``each`` labels of every class, scattered as in real split files."""
    return torch.arange(classes).repeat(each)


def of(kind: str, train: Tensor, test: Tensor, clients: int, beta: float, seed: int, least: int = 1) -> skew.Parts:
    """Any of the three by name."""
    division = Division(clients, seed, beta=beta, least=least)
    if kind == "iid":
        return skew.iid(train, test, division)
    if kind == "dirichlet":
        return skew.dirichlet(train, test, division)
    return skew.pachinko(train, test, COARSE, 10.0, division)


def assert_shared_out(parts: skew.Parts, train: Tensor, test: Tensor, clients: int) -> None:
    """Every position of both splits at exactly one client, ascending there."""
    assert len(parts) == clients
    for which, labels in ((0, train), (1, test)):
        for part in parts:
            assert part[which].dtype == torch.long and torch.equal(part[which], part[which].sort().values)
        assert sorted(torch.cat([part[which] for part in parts]).tolist()) == list(range(len(labels)))


def same(one: skew.Parts, other: skew.Parts) -> bool:
    return all(torch.equal(a, b) for mine, theirs in zip(one, other, strict=True) for a, b in zip(mine, theirs, strict=True))


def per_class(parts: skew.Parts, which: int, labels: Tensor, classes: int) -> Tensor:
    """How many images of each class each client has [clients, classes]."""
    return torch.stack([labels[part[which]].bincount(minlength=classes) for part in parts])


@BOUNDED
@given(LABELS, LABELS, CLIENTS, SEEDS)
def test_iid_gives_every_image_once_in_even_sizes(train: list[int], test: list[int], clients: int, seed: int):
    labels = torch.tensor(train), torch.tensor(test)
    parts = skew.iid(*labels, Division(clients, seed, least=0))
    assert_shared_out(parts, *labels, clients)
    for which in (0, 1):
        sizes = [len(part[which]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    assert same(parts, skew.iid(*labels, Division(clients, seed, least=0)))


@pytest.mark.parametrize("kind", ["dirichlet", "pachinko"])
@BOUNDED
@given(train=LABELS, test=LABELS, clients=CLIENTS, beta=BETAS, seed=SEEDS, least=st.integers(1, 4))
def test_skewed_parts_give_every_image_once_and_enough_to_each_or_say_what_to_change(
    kind: str, train: list[int], test: list[int], clients: int, beta: float, seed: int, least: int
):
    labels = torch.tensor(train), torch.tensor(test)
    try:
        parts = of(kind, *labels, clients, beta, seed, least)
    except UserError as error:
        assert str(error).startswith("data.clients: ") and "lower data.clients" in str(error)
        return
    assert_shared_out(parts, *labels, clients)
    assert min(len(own) for own, _ in parts) >= least
    assert same(parts, of(kind, *labels, clients, beta, seed, least))


@pytest.mark.parametrize("kind", ["dirichlet", "pachinko"])
@BOUNDED
@given(clients=CLIENTS, beta=BETAS, seed=SEEDS, times=st.integers(1, 3))
def test_test_images_follow_the_proportions_of_training_images(kind: str, clients: int, beta: float, seed: int, times: int):
    # Both splits are cut at the same shares: each of the two cuts around a client is rounded by at most half an image.
    train, test = balanced(6, 40), balanced(6, 40 // times)
    parts = of(kind, train, test, clients, beta, seed)
    of_train, of_test = (per_class(parts, which, labels, 6).double() for which, labels in ((0, train), (1, test)))
    assert ((of_train / 40 - of_test / (40 // times)).abs() <= 1 / 40 + 1 / (40 // times) + 1e-9).all()


@pytest.mark.parametrize("kind", ["dirichlet", "pachinko"])
def test_equal_splits_are_divided_equally(kind: str):
    train = balanced(6, 50)
    parts = of(kind, train, train, clients=5, beta=0.5, seed=3)
    assert torch.equal(per_class(parts, 0, train, 6), per_class(parts, 1, train, 6))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pachinko"])
def test_the_seed_alone_decides(kind: str):
    train, test = balanced(6, 50), balanced(6, 10)
    torch.manual_seed(1)
    one = of(kind, train, test, 4, 0.5, seed=7)
    torch.manual_seed(2)  # the state of the process has no say
    assert same(one, of(kind, train, test, 4, 0.5, seed=7))
    assert not same(one, of(kind, train, test, 4, 0.5, seed=8))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pachinko"])
def test_one_client_takes_everything(kind: str):
    train, test = balanced(6, 7), balanced(6, 2)
    ((own_train, own_test),) = of(kind, train, test, 1, 0.5, seed=0)
    assert own_train.tolist() == list(range(42)) and own_test.tolist() == list(range(12))


def test_further_ids_give_further_draws():
    # The domains of one source are divided with the same seed, but not in the same way.
    train = balanced(6, 50)
    one, other = (skew.dirichlet(train, train, Division(4, 0), name) for name in ("photo", "sketch"))
    assert not same(one, other)


def test_more_clients_than_images_name_the_counts():
    for kind in ("iid", "dirichlet", "pachinko"):
        with pytest.raises(UserError, match=r"^data\.clients: 6 training images cannot give 7 clients 1 each; lower data\.clients$"):
            of(kind, balanced(6, 1), balanced(6, 1), 7, 1.0, seed=0)
        with pytest.raises(UserError, match="12 training images cannot give 3 clients 5 each"):
            of(kind, balanced(6, 2), balanced(6, 1), 3, 1.0, seed=0, least=5)


def test_a_minimum_that_no_draw_reaches_ends_with_what_to_change():
    # With a beta near 0 each of the 2 classes goes to one client whole, so that at most 2 of 6 clients have anything.
    with pytest.raises(UserError) as error:
        skew.dirichlet(balanced(2, 60), balanced(2, 6), Division(6, 0, beta=0.001, least=10))
    message = str(error.value)
    assert message.startswith("data.clients: 200 draws with data.beta=0.001 left one of 6 clients with fewer than 10 training images")
    assert all(knob in message for knob in ("raise data.beta", "lower data.clients", "data.min_samples"))


def test_draws_are_repeated_until_every_client_has_enough():
    train = balanced(6, 20)

    def smallest(seed: int, least: int) -> int:
        return min(len(own) for own, _ in skew.dirichlet(train, train, Division(6, seed, beta=0.3, least=least)))

    assert any(smallest(seed, 1) < 9 for seed in range(8))  # so one draw is not enough
    assert all(smallest(seed, 9) >= 9 for seed in range(8))


@pytest.mark.parametrize("beta", [1e-300, 1e-12, 1e-4, 1e6, 1e300])
@pytest.mark.parametrize("kind", ["dirichlet", "pachinko"])
def test_extreme_betas_still_give_every_image_once_or_a_clear_end(kind: str, beta: float):
    # `Generator.dirichlet` is asked for shares that underflow or overflow.
    train, test = balanced(6, 30), balanced(6, 5)
    try:
        parts = of(kind, train, test, 3, beta, seed=0)
    except UserError as error:
        assert "data.beta" in str(error)
        return
    assert_shared_out(parts, train, test, 3)


def imbalance(kind: str, beta: float, clients: int = 5, seeds: int = 5) -> float:
    """Mean over seeds, clients and classes of |share of the client's images - even share|, in units of the even share."""
    train = balanced(6, 200)
    total = 0.0
    for seed in range(seeds):
        held = per_class(of(kind, train, train, clients, beta, seed), 0, train, 6).double()
        total += float((held / 200 * clients - 1.0).abs().mean())
    return total / seeds


def test_beta_sets_the_skew():
    # Dirichlet(beta) over 5 clients: the mean deviation from an even share is near 0 for a large beta and near 1.6 (one has all) for 0.
    even, middle, skewed = (imbalance("dirichlet", beta) for beta in (1000.0, 1.0, 0.05))
    assert even < 0.05 < 0.4 < middle < 1.0 < 1.2 < skewed
    assert imbalance("iid", 1.0) < 0.2


def test_pachinko_skews_superclasses_by_beta():
    def deviation(beta: float) -> float:
        train = balanced(6, 200)
        of_groups = []
        for seed in range(5):
            held = per_class(of("pachinko", train, train, 3, beta, seed), 0, train, 6).double()
            groups = held.view(3, 3, 2).sum(-1)  # [clients, superclasses]
            of_groups.append((groups / groups.sum(1, keepdim=True) - 1 / 3).abs().mean())
        return float(torch.stack(of_groups).mean())

    assert deviation(1000.0) < 0.05 and deviation(0.05) > 0.2


def test_pachinko_clients_hold_equal_amounts():
    # Each draws its quota; only what is in it differs.
    train = balanced(6, 101)
    sizes = [len(own) for own, _ in of("pachinko", train, train, 7, 0.1, seed=0)]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == 606


def test_pachinko_with_a_class_that_has_test_images_alone():
    # Its shares cannot follow training images: it is dealt evenly.
    train, test = balanced(5, 40), torch.cat([balanced(5, 4), torch.full((9,), 5)])
    parts = of("pachinko", train, test, 3, 0.5, seed=0)
    assert_shared_out(parts, train, test, 3)
    assert per_class(parts, 1, test, 6)[:, 5].tolist() == [3, 3, 3]


@pytest.mark.parametrize("shots", [16, 20, 3])
def test_a_large_beta_gives_about_equal_shares(shots: int):
    # Each class is rounded apart, in every client's favour alike: a class of 16 among 10 clients gives each one or two.
    train = balanced(100, shots)
    for seed in range(5):
        sizes = [len(own) for own, _ in skew.dirichlet(train, balanced(100, 12), Division(10, seed, beta=1000.0))]
        assert sum(sizes) == 100 * shots and max(sizes) - min(sizes) <= 0.25 * 10 * shots + 15, sizes
        counts = per_class(skew.dirichlet(train, train, Division(10, seed, beta=1e6)), 0, train, 100)
        assert int(counts.min()) >= shots // 10 and int(counts.max()) <= -(-shots // 10)


def test_equal_shares_favour_no_client():
    share, total = np.full(10, 0.1), np.zeros(10)
    ties = np.random.Generator(np.random.PCG64(0))
    for _ in range(1000):
        counts = skew.largest_remainder(share, 16, ties.permutation(10))
        assert counts.sum() == 16 and set(counts) == {1, 2}
        total += counts
    assert total.min() > 1500 and total.max() < 1700


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_each_count_is_less_than_one_from_its_share(count: int):
    gen = np.random.Generator(np.random.PCG64(1))
    for share in (*gen.dirichlet([0.3] * 6, size=20), np.array([1.0, 0, 0, 0, 0, 0])):
        counts = skew.largest_remainder(share, count, gen.permutation(6))
        assert counts.sum() == count and (np.abs(counts - share * count) < 1 + 1e-9).all()
