"""The server's pool: the exchanged tensors that each participant sent last, for methods whose clients read others' (rule ``pool``).

Shape legend: C clients, E other clients that a client reads, Y pooled parameters of one client, M rows that there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import POOL, Others

_ENTRY = re.compile(r"(pool|before|received)\.(0|[1-9][0-9]{0,17})", re.ASCII)


def is_entry(name: str) -> bool:
    """Whether a tensor of that name is of a pool's state. Raises a ValueError if it seems to be, and is of no client."""
    if (found := _ENTRY.fullmatch(name)) is None and name.startswith(("pool.", "before.", "received.")):
        raise ValueError(f"'{name[:60]}' is of no client")
    return found is not None


class Pool:
    """Pooled parameters [Y] by client id; the same on every rank.

    ``rows``: what each client sent last. Of the participants of the last round, also those whose upload was lost, ``before`` is what
    they had sent before it, and ``received`` what the server sent to those who had sent nothing: with both, what a participant read then
    can be read again.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}
        self.before: dict[int, Tensor] = {}
        self.received: dict[int, Tensor] = {}

    def keep(self, ids: Sequence[int], sent: Tensor, received: Tensor, lost: Sequence[int] = ()) -> None:
        """After a round: what its participants ``sent`` [C, Y], and what the server had sent to all of them [Y].

        ``lost``: participants of whom nothing has come.
        """
        everybody = [*ids, *lost]
        self.before = {i: self.rows[i].clone() for i in everybody if i in self.rows}
        self.received = {i: received.clone() for i in everybody if i not in self.rows}
        self.rows.update(zip(ids, sent, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """All of it by name: ``pool.<id>``, ``before.<id>``, ``received.<id>``."""
        parts = {"pool": self.rows, "before": self.before, "received": self.received}
        return {f"{part}.{client}": row for part, rows in parts.items() for client, row in rows.items()}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor]) -> Pool:
        """The inverse of `state_dict`."""
        made = cls()
        parts = {"pool": made.rows, "before": made.before, "received": made.received}
        for name, row in tensors.items():
            part, _, client = name.partition(".")
            parts[part][int(client)] = row
        return made

    def readable(self, client: int, limit: int) -> int:
        """How many other clients' tensors ``client`` is sent, at most ``limit``."""
        return min(limit, len(self.rows) - (client in self.rows))

    def nearest(self, ids: Sequence[int], current: Tensor, limit: int, as_read: bool = False) -> tuple[Tensor, Tensor] | None:
        """For each client the ``limit`` others whose tensors are nearest (L2) to its own; equally near ones in order of id.

        Args:
            current: [Y], what a client that has never sent anything has.
            as_read: for participants of the last round, those that they read at its start.

        Returns:
            Tensors [C, E, Y], nearest first, and which of them are there [C, E]; None while nothing can be read.
        """
        before, received = (self.before, self.received) if as_read else ({}, {})
        then = before | received  # what those participants had to look from
        stored = sorted([(j, 1) for j in self.rows] + [(j, 0) for j in before])  # (whose, whether it is the newest)
        whose, newest = torch.tensor(stored, dtype=torch.long).view(-1, 2).unbind(dim=1)
        asking, changed = (torch.tensor(list(clients), dtype=torch.long) for clients in (ids, then))
        at_start = (newest == 0) | ~torch.isin(whose, changed)  # how the pool was at the start of the last round
        there = torch.where(torch.isin(asking, changed)[:, None], at_start, newest == 1) & (asking[:, None] != whose)  # [C, M]
        reach = min(limit, int(there.sum(dim=1).amax())) if there.numel() else 0
        if reach == 0:
            return None
        matrix = torch.stack([self.rows[j] if new else before[j] for j, new in stored])
        own = torch.stack([then.get(i, self.rows.get(i, current)) for i in ids])
        distance = torch.cdist(own, matrix, compute_mode="donot_use_mm_for_euclid_dist")
        distance = distance.masked_fill(~there.to(distance.device), float("inf"))
        distance, order = distance.sort(dim=1, stable=True)
        return matrix[order[:, :reach]], torch.isfinite(distance[:, :reach])

    def others(self, layout: Layout, ids: Sequence[int], shared: Tensor, limit: int, as_read: bool = False) -> Others | None:
        """What clients read of ``limit`` others at most (``as_read``: see `nearest`); None if there is nothing to read.

        ``shared`` [X]: the server's.
        """
        if POOL not in layout.columns:
            return None
        columns = layout.columns[POOL]
        found = self.nearest(ids, shared[columns], limit, as_read)
        return None if found is None else Others(layout.part(columns, found[0]), found[1])
