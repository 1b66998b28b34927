"""The server's pool: the exchanged tensors that each participant sent last, for methods whose clients read others' (rule ``pool``).

Shape legend: C clients, E other clients that a client reads, Y pooled parameters of one client.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import POOL, Others


class Pool:
    """Pooled parameters [Y] by client id; the same on every rank."""

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}

    def readable(self, client: int, limit: int) -> int:
        """How many other clients' tensors ``client`` is sent, at most ``limit``."""
        return min(limit, len(self.rows) - (client in self.rows))

    def nearest(self, ids: Sequence[int], current: Tensor, limit: int) -> tuple[Tensor, Tensor] | None:
        """For each client the ``limit`` others whose tensors are nearest (L2) to its own; equally near ones in order of id.

        Args:
            current: [Y], what a client that has never sent anything has.

        Returns:
            Tensors [C, E, Y], nearest first, and which of them are there [C, E]; None while nothing can be read.
        """
        reach = max((self.readable(client, limit) for client in ids), default=0)
        if reach == 0:
            return None
        stored = sorted(self.rows)
        matrix = torch.stack([self.rows[i] for i in stored])
        own = torch.stack([self.rows.get(i, current) for i in ids])
        distance = torch.cdist(own, matrix, compute_mode="donot_use_mm_for_euclid_dist")
        self_ = torch.tensor(ids)[:, None] == torch.tensor(stored)
        distance = distance.masked_fill(self_.to(distance.device), float("inf"))
        distance, order = distance.sort(dim=1, stable=True)
        return matrix[order[:, :reach]], torch.isfinite(distance[:, :reach])

    def others(self, layout: Layout, ids: Sequence[int], shared: Tensor, limit: int) -> Others | None:
        """What clients read of ``limit`` others at most; None if there is nothing to read. ``shared`` [X]: the server's."""
        if POOL not in layout.columns:
            return None
        columns = layout.columns[POOL]
        found = self.nearest(ids, shared[columns], limit)
        return None if found is None else Others(layout.part(columns, found[0]), found[1])
