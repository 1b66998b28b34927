"""Stems as values, and the cache that keeps them image by image."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pfedmma.clip.stems import Features, Stem, StemCache, TowerStem


def stem_of(rows: Tensor, normed: bool = True, pool: bool = True) -> TowerStem:
    """A stem that says of which rows it is: 6 numbers of each, 6 more with ``normed``, and 1 with ``pool``."""
    output = rows.view(-1, 1, 1) * 10.0 + torch.arange(6.0).view(3, 2)
    return TowerStem(output, -output if normed else None, rows.clone() if pool else None, 2)


ROW = 6 * 4 + 6 * 4 + 8  # bytes of a row of `stem_of`


def assert_stem(stem: TowerStem, rows: list[int]) -> None:
    """The stem is that of these rows, in this order."""
    wanted = stem_of(torch.tensor(rows))
    assert torch.equal(stem.output, wanted.output) and torch.equal(stem.normed, wanted.normed) and torch.equal(stem.pool, wanted.pool)


class Asked:
    """A cache with room for so many rows; ``made``: the rows of each call that computed some."""

    def __init__(self, room: float) -> None:
        self.cache = StemCache(room * ROW)
        self.made: list[list[int]] = []

    def __call__(self, key: str, *rows: int) -> None:
        """Ask for the rows, and see that they are what comes."""
        assert_stem(self.cache.get(key, torch.tensor(rows), self.make), list(rows))
        assert self.cache.held <= self.cache.limit

    def make(self, rows: Tensor) -> TowerStem:
        self.made.append(rows.tolist())
        return stem_of(rows)


def test_each_row_is_made_once_in_whatever_slices_it_is_asked_for() -> None:
    asked = Asked(room=100)
    asked("test", 0, 1, 2, 3)
    asked("test", 4, 5)
    for rows in ((0, 1), (2, 3, 4), (5, 0, 4, 1), (3,), (0, 1, 2, 3, 4, 5), (4, 5), (2, 2)):
        asked("test", *rows)
    assert asked.made == [[0, 1, 2, 3], [4, 5]]
    asked("test", 5, 9, 3, 7)  # two are there
    asked("test", 7, 9, 0)
    asked("other", 0, 1)  # the same rows of other images
    assert asked.made[2:] == [[9, 7], [0, 1]]
    assert asked.cache.held == (8 + 2) * ROW and not asked.cache.full
    assert asked.cache.holds("test", torch.tensor([9, 0])) and not asked.cache.holds("test", torch.tensor([9, 8]))
    assert asked.cache.holds("other", torch.tensor([1])) and not asked.cache.holds("third", torch.tensor([1]))


def test_what_finds_no_room_is_made_anew_each_time() -> None:
    asked = Asked(room=5)
    asked("a", 0, 1, 2)
    assert not asked.cache.full
    for _ in range(2):
        asked("b", 0, 1, 2)  # 3 + 3 > 5
        assert asked.cache.full and asked.cache.held == 3 * ROW
    for _ in range(2):
        asked("a", 3, 1, 4, 5, 0)  # three of them find no room
    assert asked.made == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3, 4, 5], [3, 4, 5]]
    asked("b", 7, 8)  # what is smaller still does
    asked("b", 8)
    asked("a", 2, 0)
    assert asked.made[5:] == [[7, 8]] and asked.cache.held == 5 * ROW


def test_a_cache_without_memory_is_full_at_once() -> None:
    assert StemCache(0).full and not StemCache(1).full


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("pool", [True, False])
def test_stems_of_some_of_several_and_for_several(normed: bool, pool: bool) -> None:
    rows = torch.tensor([3, 0, 0])
    whole = stem_of(torch.arange(5), normed, pool)
    some = {"take": whole.take(rows), "join": TowerStem.join([whole, whole.take(rows)]), "repeat": whole.repeat(3)}
    places = {"take": rows, "join": torch.tensor([0, 1, 2, 3, 4, 3, 0, 0]), "repeat": torch.arange(5).repeat(3)}
    for name, stem in some.items():
        assert stem.blocks == 2
        for part, wanted in ((getattr(stem, part), getattr(whole, part)) for part in ("output", "normed", "pool")):
            assert (part is None) == (wanted is None)
            assert part is None or torch.equal(part, wanted[places[name]]), name
        assert stem.nbytes == len(places[name]) * (24 + 24 * normed + 8 * pool)
    assert torch.equal(whole.repeat(1).output, whole.output)


def test_features_of_some_of_several_and_for_several() -> None:
    whole = Features(torch.arange(10.0).view(5, 2))
    rows = torch.tensor([3, 0, 0])
    assert torch.equal(whole.take(rows).value, whole.value[rows])
    assert torch.equal(Features.join([whole, whole.take(rows)]).value, torch.cat([whole.value, whole.value[rows]]))
    assert torch.equal(whole.repeat(3).value, whole.value.repeat(3, 1))


@dataclass(frozen=True)
class Both(Stem):
    """A stem of a stem, a tensor and a plain value."""

    tower: TowerStem
    value: Tensor
    name: str


def test_a_stem_may_be_of_stems() -> None:
    whole = Both(stem_of(torch.arange(4)), torch.arange(4.0), "both")
    rows = torch.tensor([3, 1])
    for stem, wanted in (
        (whole.take(rows), [3, 1]),
        (Both.join([whole, whole.take(rows)]), [0, 1, 2, 3, 3, 1]),
        (whole.take(rows).repeat(2), [3, 1, 3, 1]),
    ):
        assert_stem(stem.tower, wanted)
        assert stem.value.tolist() == wanted and stem.name == "both"
        assert stem.nbytes == len(wanted) * (ROW + 4)


@pytest.mark.parametrize(("wanted", "sharing", "limit"), [("auto", 1, 10e9), ("auto", 2, 5e9), ("3", 1, 3e9), ("0", 1, 0.0)])
def test_how_much_is_kept_on_a_gpu(monkeypatch: pytest.MonkeyPatch, wanted: str, sharing: int, limit: float) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40_000_000_000, 80_000_000_000))
    assert StemCache.from_setting(wanted, torch.device("cuda", 0), sharing).limit == limit


def test_how_much_is_kept_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert [StemCache.from_setting(wanted, cpu, 2).limit for wanted in ("auto", "0.5", "0")] == [2e9, 0.5e9, 0.0]
    assert StemCache.from_setting("0", cpu).full
