"""One client's tensors end to end in a vector, and many clients' as a matrix.

Shape legend: C clients, P parameters of one client, T of them trained (those that are frozen come last).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor


class Layout:
    """Names and shapes of one client's tensors, laid end to end in one vector.

    A rank's clients are one matrix [C, P]. The exchanged tensors come first, rule by rule, then the private ones, then those that are
    ``frozen``: each kind is one slice, an optimizer step is one element-wise operation on the first T columns, and each named tensor
    [C, *shape] is a view. ``columns``: rule -> the slice of its tensors; ``private``: the slice of what is trained and never sent.

    ``picked``: exchanged tensor -> the private one of which it holds some rows. Then all that is exchanged is such rows, and ``trained``
    is what is private; else it is all of the first T columns.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        exchanged: Mapping[str, str],
        frozen: Collection[str] = (),
        picked: Mapping[str, str] | None = None,
    ) -> None:
        unknown = sorted({*exchanged, *frozen} - set(shapes))
        assert not unknown, f"exchange or frozen names no tensor: {unknown}"
        assert not exchanged.keys() & set(frozen), "what is frozen is the same for all, so it is not exchanged"
        assert not picked or picked.keys() == exchanged.keys(), "rows are picked for all that is exchanged, or for nothing"
        self.exchange, self.picked = dict(exchanged), dict(picked or {})
        self.frozen = tuple(name for name in shapes if name in frozen)
        rules = dict.fromkeys(exchanged.values())
        names = [n for rule in rules for n in shapes if exchanged.get(n) == rule]
        names += [n for n in shapes if n not in exchanged and n not in frozen] + list(self.frozen)
        self.shapes = {name: tuple(shapes[name]) for name in names}
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name in names:
            self.offsets[name] = self.size
            self.size += math.prod(self.shapes[name])
        self.columns: dict[str, slice] = {}
        start = 0
        for rule in rules:
            stop = start + sum(math.prod(shapes[name]) for name in exchanged if exchanged[name] == rule)
            self.columns[rule] = slice(start, stop)
            start = stop
        self.exchanged_size = start
        self.trained_size = self.size - sum(math.prod(self.shapes[name]) for name in self.frozen)
        self.private = slice(self.exchanged_size, self.trained_size)
        self.trained = self.private if self.picked else slice(0, self.trained_size)

    def __eq__(self, other: object) -> bool:
        """Whether a vector of one means the same in the other."""
        if not isinstance(other, Layout):
            return NotImplemented
        mine, theirs = ((list(each.shapes.items()), each.exchange, each.frozen) for each in (self, other))
        return mine == theirs

    @property
    def trained_count(self) -> int:
        """How many numbers a client trains."""
        return self.trained.stop - self.trained.start

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """[C, P] -> {name: [C, *shape]} (or [P] -> {name: [*shape]}), all views of ``flat``."""
        return {name: self._view(name, flat) for name in self.shapes}

    def part(self, columns: slice, flat: Tensor) -> dict[str, Tensor]:
        """[..., n] holding just ``columns`` -> {name: [..., *shape]} of the tensors there, all views."""
        inside = [name for name, at in self.offsets.items() if columns.start <= at < columns.stop]
        return {name: self._view(name, flat, columns.start) for name in inside}

    def _view(self, name: str, flat: Tensor, start: int = 0) -> Tensor:
        """The tensor in ``flat``, which begins with the column ``start``."""
        shape = self.shapes[name]
        return flat.narrow(-1, self.offsets[name] - start, math.prod(shape)).view(*flat.shape[:-1], *shape)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """{name: [*shape]} -> [P]."""
        flat = torch.empty(self.size, dtype=torch.float32)
        for name, view in self.views(flat).items():
            view.copy_(tensors[name])
        return flat
