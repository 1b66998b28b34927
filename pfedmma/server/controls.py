"""SCAFFOLD's control variate of the server (Karimireddy et al., arXiv 1910.06378): c, the mean of those of all clients.

The paper adds (S / N) x the mean change of S participants of N clients. Where uploads are weighted by images so are the c_i: S and N are
then images, so that c stays the mean whose weights are those of FedAvg's objective; with clients of equal size it is the same.

Shape legend: X exchanged parameters of one client.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pfedmma.server.rules import ServerState, Uploads
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import CONTROL, UNIFORM


@dataclass(frozen=True)
class MeanControl:
    """An update of the server's state by the mean change of the participants' control variates.

    ``clients`` that may take part in a round, and their ``images`` together.
    """

    layout: Layout
    clients: int
    images: int

    def __call__(self, state: ServerState, mean: Tensor, uploads: Uploads) -> ServerState:
        control = state[CONTROL].clone()
        for rule, columns in self.layout.columns.items():
            share = len(uploads.clients) / self.clients if rule == UNIFORM else sum(uploads.samples) / self.images
            control[columns] += share * mean[columns]
        return {**state, CONTROL: control}
