"""Rows of private tensors that participants pick after training: sent in place of tensors of their own, and overwritten with the mean.

A method says which (`Method.picked`, `Method.pick`). Nobody but who has sent rows receives what the server makes of them.

Shape legend: C participants that train on this rank, P parameters of one client, X of them exchanged, s rows that a tensor sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.engine.cohort import Members
from pfedmma.methods.base import Method
from pfedmma.stack.layout import Layout


@dataclass(frozen=True)
class PickedRows:
    """What the clients ``ids`` picked: ``rows`` {exchanged tensor: [C, s]}, by number and in the order in which they are sent."""

    layout: Layout
    ids: Sequence[int]
    rows: Mapping[str, Tensor]

    @classmethod
    def after_training(cls, method: Method, members: Members, ids: Sequence[int], round_: int, seed: int) -> PickedRows:
        """Of clients that have just trained, while the server still has what it had before."""
        state = method.layout.views(members.states.gather(ids, members.server.shared))
        keys = [rng.key(seed, "rows", round_, client) for client in ids]
        return cls(method.layout, ids, method.pick(state, keys) if ids else {})

    def sent(self, members: Members) -> Tensor:
        """What they send [C, X]."""
        stack = members.states.gather(self.ids, members.server.shared)
        views = self.layout.views(stack)
        for name, rows in self.rows.items():
            views[name].copy_(views[self.layout.picked[name]][self._each(rows), rows])
        return stack[:, : self.layout.exchanged_size]

    def write_back(self, members: Members, counted: Sequence[int]) -> None:
        """Put what the server has now in place of the rows that those of the clients sent who were ``counted``."""
        stack = members.states.gather(self.ids, members.server.shared)
        views = self.layout.views(stack)
        for name, rows in self.rows.items():
            views[self.layout.picked[name]][self._each(rows), rows] = views[name]
        changed = frozenset(counted)
        written = [row for row, client in enumerate(self.ids) if client in changed]
        if written:
            members.states.scatter([self.ids[row] for row in written], torch.stack([stack[row] for row in written]))

    def _each(self, rows: Tensor) -> Tensor:
        """The clients' numbers [C, 1]."""
        return torch.arange(len(self.ids), device=rows.device).unsqueeze(1)
