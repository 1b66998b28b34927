"""Uploads of clients of unlike width: each number is averaged over those who have it (as HeteroLoRA, Cho et al. 2024, arXiv 2401.06432,
truncates and pads, but without its zeros in the mean).

Shape legend: C participants that train on this rank, X exchanged parameters of the widest client.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.server.rules import SHARED, ServerState, Uploads
from pfedmma.stack.widths import Widths


@dataclass(frozen=True)
class ByThoseWhoHaveIt:
    """Makes uploads whose sum, weighted by images, is the mean over those who have a number; what nobody has stays the server's."""

    widths: Widths

    def __call__(self, rows: Tensor, uploads: Uploads, state: ServerState) -> Tensor:
        """[C, X], fp64."""
        size, total = rows.shape[1], sum(uploads.samples)
        having = torch.zeros(size, dtype=torch.float64, device=rows.device)
        for client, samples in zip(uploads.clients, uploads.samples, strict=True):
            having += samples / total * self.widths.mask(client)[:size].double()
        made = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
        for row, client, sent in zip(made, uploads.hosted, rows, strict=True):
            own = sent.double() * self.widths.mask(client)[:size] / having
            row.copy_(torch.where(having > 0, own, state[SHARED].double()))
        return made
