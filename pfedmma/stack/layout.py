"""One client's tensors end to end in a vector, and many clients' as a matrix.

Shape legend: C clients, P parameters of one client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Layout:
    """Names and shapes of one client's trained tensors, laid end to end in one vector.

    A rank's clients are one matrix [C, P]: an optimizer step is one element-wise operation on it, the exchanged tensors
    (which come first, rule by rule) are one slice of it, and each named tensor [C, *shape] is a view. ``columns``: rule -> the slice of
    its tensors.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], exchanged: Mapping[str, str]) -> None:
        unknown = sorted(set(exchanged) - set(shapes))
        assert not unknown, f"exchange names no tensor: {unknown}"
        self.exchange = dict(exchanged)
        rules = dict.fromkeys(exchanged.values())
        names = [n for rule in rules for n in shapes if exchanged.get(n) == rule] + [n for n in shapes if n not in exchanged]
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

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """[C, P] -> {name: [C, *shape]} (or [P] -> {name: [*shape]}), all views of ``flat``."""
        lead = flat.shape[:-1]
        return {name: flat.narrow(-1, self.offsets[name], math.prod(shape)).view(*lead, *shape) for name, shape in self.shapes.items()}

    def part(self, columns: slice, flat: Tensor) -> dict[str, Tensor]:
        """[..., n] holding just ``columns`` -> {name: [..., *shape]} of the tensors there, all views."""
        inside = {name: at - columns.start for name, at in self.offsets.items() if columns.start <= at < columns.stop}
        shapes = ((name, at, self.shapes[name]) for name, at in inside.items())
        return {name: flat.narrow(-1, at, math.prod(shape)).view(*flat.shape[:-1], *shape) for name, at, shape in shapes}

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """{name: [*shape]} -> [P]."""
        flat = torch.empty(self.size, dtype=torch.float32)
        for name, view in self.views(flat).items():
            view.copy_(tensors[name])
        return flat
