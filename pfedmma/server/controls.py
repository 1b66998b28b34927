"""SCAFFOLD's control variate of the server (Karimireddy et al., arXiv 1910.06378): c, the mean of those of all clients.

The paper adds (S / N) x the mean change of S participants of N clients. Where uploads are weighted by images so are the c_i: S and N are
then images, so that c stays the mean whose weights are those of FedAvg's objective; with clients of equal size it is the same. Where
clients differ in width N counts, for each number, those who have it: the change that the others send of it is 0.

Shape legend: X exchanged parameters of one client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.server.rules import ServerState, Uploads
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import CONTROL, UNIFORM
from pfedmma.stack.widths import Widths


@dataclass(frozen=True)
class MeanControl:
    """An update of the server's state by the mean change of the participants' control variates.

    ``of_all`` [X], fp64: N of each number, which are images or clients, as its rule counts.
    """

    layout: Layout
    of_all: Tensor

    @classmethod
    def from_images(cls, layout: Layout, images: Mapping[int, int], device: torch.device, widths: Widths | None = None) -> MeanControl:
        """``images``: of each client that may take part in a round."""
        if widths is None:
            return cls(layout, _counts(layout, images, device))
        of_all = torch.zeros(layout.exchanged_size, dtype=torch.float64, device=device)
        for width, mask in widths.masks.items():
            own = {client: count for client, count in images.items() if widths.of[client] == width}
            of_all += mask[: len(of_all)] * _counts(layout, own, device)
        return cls(layout, of_all.clamp_(min=1))  # what nobody has does not change

    def __call__(self, state: ServerState, mean: Tensor, uploads: Uploads) -> ServerState:
        took_part = _counts(self.layout, dict(zip(uploads.clients, uploads.samples, strict=True)), mean.device)
        return {**state, CONTROL: state[CONTROL] + (took_part / self.of_all).float() * mean}


def _counts(layout: Layout, images: Mapping[int, int], device: torch.device) -> Tensor:
    """The images of these clients together, or their number, as the rule of each number counts [X], fp64."""
    counts = torch.empty(layout.exchanged_size, dtype=torch.float64, device=device)
    for rule, columns in layout.columns.items():
        counts[columns] = len(images) if rule == UNIFORM else sum(images.values())
    return counts
