"""Stems: the part of a forward pass that no trained tensor touches. It is computed without gradients, and may be kept.

What the frozen blocks below the first adapter make of an image follows from its pixels alone. Test images are the same at every
evaluation, and training images in every epoch where they are not augmented: an exact shortcut, bounded in memory.

Shape legend: N sequences (images or prompts), T tokens, W width, D embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound="Stem")
ON_A_CPU, OF_A_GPU = 2e9, 0.25  # of memory for stems by default: bytes, and the share of what is free


@dataclass(frozen=True)
class Stem:
    """What follows from N images or prompts without trained tensors. Its fields are tensors [N,...], further stems, or plain values."""

    def repeat(self: S, clients: int) -> S:
        """The same stem for each of ``clients`` clients: [N,...] -> [clients * N, ...]."""
        return self.each(lambda t: repeat(t, clients))

    def take(self: S, rows: Tensor) -> S:
        """The stem of some of its images or prompts."""
        return self.each(lambda t: t[rows])

    @classmethod
    def join(cls: type[S], stems: Sequence[S]) -> S:
        """One stem of all images or prompts of ``stems``, which are of one kind."""
        if len(stems) == 1:
            return stems[0]
        parts = {item.name: [getattr(stem, item.name) for stem in stems] for item in dataclasses.fields(stems[0])}
        joined = {
            name: torch.cat(values) if isinstance(values[0], Tensor) else type(values[0]).join(values)
            for name, values in parts.items()
            if isinstance(values[0], (Tensor, Stem))
        }
        return dataclasses.replace(stems[0], **joined)

    @property
    def nbytes(self) -> int:
        """The memory of its tensors."""
        return sum(part.nbytes for part in self._parts().values())

    def each(self: S, change: Callable[[Tensor], Tensor]) -> S:
        """The same stem with each of its tensors changed."""
        changed = {name: change(part) if isinstance(part, Tensor) else part.each(change) for name, part in self._parts().items()}
        return dataclasses.replace(self, **changed)

    def _parts(self) -> dict[str, Tensor | Stem]:
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, (Tensor, Stem))}


@dataclass(frozen=True)
class TowerStem(Stem):
    """What the lowest ``blocks`` frozen blocks of a tower leave to the first place in use.

    ``output`` [N,T,W] is the output of the last of them ([N,1,W] where the last block of the tower keeps the pooled token alone) and
    ``normed``, of the same shape, LN1 of its input; None with ``blocks`` 0. ``pool`` is the index of the pooled token, [N] or
    one for all; None where all tokens are kept to the end.
    """

    output: Tensor
    normed: Tensor | None
    pool: Tensor | int | None
    blocks: int

    def rows(self, start: int, end: int) -> TowerStem:
        """The stem of the sequences from ``start`` to before ``end``, not copied."""
        return self.each(lambda t: t[start:end])


@dataclass(frozen=True)
class Features(Stem):
    """The stem of a tower in which no trained tensor acts: its finished features ``value`` [N,...]."""

    value: Tensor


def repeat(x: Tensor, clients: int) -> Tensor:
    """[N,...] -> [clients * N, ...], the same for each client."""
    return x if clients == 1 else x.expand(clients, *x.shape).flatten(0, 1)


class StemCache:
    """Stems of images, each made the first time that it is asked for and kept until ``limit`` bytes are held.

    Images are known by a key (a test set, the training images of a client) and their rows in it. What finds no room is made anew each time.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.held = limit, 0
        self.full = limit == 0  # something has found no room
        self._kept: dict[Hashable, _Rows] = {}

    @classmethod
    def from_setting(cls, wanted: str, device: torch.device, sharing: int = 1) -> StemCache:
        """From ``federation.stems_gb``, for so many processes that may be ``sharing`` the device."""
        if wanted != "auto":
            return cls(float(wanted) * 1e9)
        return cls(ON_A_CPU if device.type == "cpu" else OF_A_GPU * torch.cuda.mem_get_info(device)[0] / sharing)

    def get(self, key: Hashable, rows: Tensor, make: Callable[[Tensor], Stem]) -> Stem:
        """The stem of the images ``rows`` [N] of ``key``; ``make`` computes it of some of these rows."""
        kept = self._kept.setdefault(key, _Rows())
        missing = kept.missing(rows)
        if len(missing) == len(rows):
            made = make(rows)
            self._keep(kept, rows, made)
            return made
        if len(missing):
            made = make(missing)
            if not self._keep(kept, missing, made):
                return _Rows.of_two(kept, missing, made).take(rows)
        return kept.take(rows)

    def holds(self, key: Hashable, rows: Tensor) -> bool:
        """Whether all these images are kept."""
        return key in self._kept and len(self._kept[key].missing(rows)) == 0

    def _keep(self, kept: _Rows, rows: Tensor, stem: Stem) -> bool:
        if self.held + stem.nbytes > self.limit:
            self.full = True
            return False
        kept.add(rows, stem)
        self.held += stem.nbytes
        return True


class _Rows:
    """Kept stems of some rows: in the parts in which they were made, with an index from row to its part."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Stem]] = []
        self.where: dict[int, tuple[int, int]] = {}  # row -> (part, position in it)

    @classmethod
    def of_two(cls, kept: _Rows, rows: Tensor, stem: Stem) -> _Rows:
        """What is kept and, for once, what has found no room."""
        both = cls()
        both.parts, both.where = list(kept.parts), dict(kept.where)
        both.add(rows, stem)
        return both

    def add(self, rows: Tensor, stem: Stem) -> None:
        self.where |= {row: (len(self.parts), position) for position, row in enumerate(rows.tolist())}
        self.parts.append((rows, stem))

    def missing(self, rows: Tensor) -> Tensor:
        return rows[[row not in self.where for row in rows.tolist()]]

    def take(self, rows: Tensor) -> Stem:
        """The stem of rows that are all here; the very part in which they were made, where that is what is asked for."""
        found = [self.where[row] for row in rows.tolist()]
        numbers = list(dict.fromkeys(part for part, _ in found))
        if len(numbers) == 1 and torch.equal(self.parts[numbers[0]][0], rows):
            return self.parts[numbers[0]][1]
        pieces = [self.parts[number][1] for number in numbers]
        starts = dict(zip(numbers, torch.tensor([0, *(len(self.parts[n][0]) for n in numbers[:-1])]).cumsum(0).tolist(), strict=True))
        return pieces[0].join(pieces).take(torch.tensor([starts[part] + position for part, position in found]))
