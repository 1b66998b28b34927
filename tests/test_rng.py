"""Masks from hashes: the hash itself against plain integers, what a mask may depend on, and that it looks drawn at random."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pfedmma import rng

SEEDS = torch.tensor([rng.key(0, "noise", client) for client in range(4)])
SHAPE = (8, 16, 64)
COUNT = math.prod(SHAPE)


def signs(mask: Tensor, share: float) -> Tensor:
    """[..., n] bool -> the same as numbers of mean 0 and variance 1."""
    return (mask.double() - share) / math.sqrt(share * (1 - share))


def plain_mix(x: int) -> int:
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ((x ^ (x >> shift)) * factor) % 2**32
    return x ^ (x >> 15)


def plain_draw(seed: int, place: str, index: int) -> int:
    """The number below 2^32 that decides about one element, without tensors."""
    own = rng.key(0, "place", place)
    key = plain_mix(plain_mix(plain_mix((seed % 2**32) ^ (own % 2**32)) ^ (seed >> 32)) ^ (own >> 32))
    return plain_mix(plain_mix(index) ^ key)


def test_each_element_follows_from_seed_place_and_index() -> None:
    mask = rng.keep_mask(SEEDS, "visual.3.q", (5, 7, 3), 0.6)
    assert mask.shape == (4, 5, 7, 3) and mask.dtype == torch.bool
    wanted = [[plain_draw(seed, "visual.3.q", i) < 0.6 * 2**32 for i in range(105)] for seed in SEEDS.tolist()]
    assert mask.flatten(1).tolist() == wanted


def test_the_hash_of_large_numbers_leaves_no_int64() -> None:
    numbers = [0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    assert rng.mix(torch.tensor(numbers)).tolist() == [plain_mix(number) for number in numbers]


def test_a_mask_stays_the_same_from_version_to_version() -> None:
    mask = rng.keep_mask(torch.tensor([2**62 + 12345]), "text.1.v", (20,), 0.5)
    assert "".join("01"[kept] for kept in mask[0].tolist()) == "10100111010000010111"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 0.99])
def test_the_share_is_kept(share: float) -> None:
    mask = rng.keep_mask(SEEDS, "a", SHAPE, share)
    # The share among n draws is off by about sqrt(p (1 - p) / n); four times that may happen.
    assert (signs(mask, share).flatten(1).mean(dim=1).abs() < 4.0 / math.sqrt(COUNT)).all()


def test_all_or_nothing() -> None:
    assert rng.keep_mask(SEEDS, "a", SHAPE, 1.0).all()
    assert not rng.keep_mask(SEEDS, "a", SHAPE, 0.0).any()


def test_a_mask_does_not_depend_on_padding() -> None:
    """A batch of 3 rows padded to 8 has the masks of the 3 rows."""
    assert torch.equal(rng.keep_mask(SEEDS, "a", SHAPE, 0.5)[:, :3], rng.keep_mask(SEEDS, "a", (3, *SHAPE[1:]), 0.5))


def test_any_part_of_a_mask_can_be_computed_alone() -> None:
    elements = torch.arange(5 * 7 * 3).view(5, 7, 3)[[4, 0]][:, :2]
    assert torch.equal(rng.keep_elements(SEEDS, "a", elements, 0.5), rng.keep_mask(SEEDS, "a", (5, 7, 3), 0.5)[:, [4, 0]][:, :, :2])


def test_a_mask_does_not_depend_on_the_stack() -> None:
    order = [2, 0, 3, 1]
    mask = rng.keep_mask(SEEDS, "a", SHAPE, 0.5)
    assert torch.equal(rng.keep_mask(SEEDS[order], "a", SHAPE, 0.5), mask[order])
    for client in range(4):
        assert torch.equal(rng.keep_mask(SEEDS[client : client + 1], "a", SHAPE, 0.5)[0], mask[client])


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 16, 32, 64, 128, 1024, 2048])
def test_indices_are_not_correlated(lag: int) -> None:
    """Neighbours in each dimension of the tensor, and powers of two, where a weak hash repeats itself."""
    for share in (0.5, 0.75):
        x = signs(rng.keep_mask(SEEDS, "a", SHAPE, share), share).flatten(1)
        products = (x[:, lag:] * x[:, :-lag]).flatten()
        assert abs(products.mean()) < 4.0 / math.sqrt(len(products))


def test_clients_and_places_are_not_correlated() -> None:
    """Also for seeds that differ in a single bit, low or high, and places that differ in a letter."""
    near = torch.tensor([7, 6, 5, 3, 7 + 2**31, 7 + 2**32, 7 + 2**61])
    places = ("visual.1.q", "visual.1.k", "visual.1.v", "text.1.q", "visual.2.q", 0, 1)
    x = torch.cat([signs(rng.keep_mask(near, place, SHAPE, 0.75), 0.75).flatten(1) for place in places])
    correlations = x @ x.T / COUNT
    correlations.fill_diagonal_(0.0)
    # 49 * 48 / 2 pairs: the largest of so many is within 5 standard deviations.
    assert correlations.abs().max() < 5.0 / math.sqrt(COUNT)


def test_one_clients_mask_is_not_anothers_in_another_order() -> None:
    """Nor where two keys differ in low bits alone: acting on the index itself, they would only exchange neighbours."""
    seeds = torch.arange(1 << 16)
    keys, order = rng.client_keys(seeds, "a").sort()
    near = (keys[1:] >> 8) == (keys[:-1] >> 8)
    assert near.sum() > 50  # of some 2^31 pairs, one in 2^24
    first, second = seeds[order[:-1][near]], seeds[order[1:][near]]
    flips = (keys[1:] ^ keys[:-1])[near]
    one, other = (signs(rng.keep_mask(half, "a", (256,), 0.5), 0.5) for half in (first, second))
    moved = other.gather(1, torch.arange(256) ^ flips.unsqueeze(1))
    assert abs((one * moved).mean()) < 4.0 / math.sqrt(one.numel())


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_every_slice_has_its_share(axis: int) -> None:
    """Chi-square of the number kept in each client, row, token or channel: its mean is the number of slices n, its deviation sqrt(2 n)."""
    share = 0.75
    x = signs(rng.keep_mask(torch.arange(16), "a", SHAPE, share), share).movedim(axis, 0).flatten(1)
    square = float((x.sum(dim=1).square() / x.shape[1]).sum())
    assert abs(square - len(x)) < 5.0 * math.sqrt(2 * len(x))


def test_patterns_of_eight_neighbours_are_uniform() -> None:
    """Chi-square over the 256 patterns of eight neighbouring bits at a share of a half."""
    bits = rng.keep_mask(torch.arange(16), "a", SHAPE, 0.5).reshape(-1, 8).long()
    counts = torch.bincount((bits * 2 ** torch.arange(8)).sum(dim=1), minlength=256).double()
    expected = len(bits) / 256
    assert abs(float(((counts - expected).square() / expected).sum()) - 255) < 5.0 * math.sqrt(2 * 255)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_mask_does_not_depend_on_the_device() -> None:
    assert torch.equal(rng.keep_mask(SEEDS.cuda(), "a", SHAPE, 0.3).cpu(), rng.keep_mask(SEEDS, "a", SHAPE, 0.3))
