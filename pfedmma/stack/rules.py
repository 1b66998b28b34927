"""How exchanged tensors become the server's, and what clients read of each other.

Shape legend: C clients, E other clients that a client reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

State = Mapping[str, Tensor]


# How an exchanged tensor becomes the server's: the mean over participants weighted by their images; the plain mean; or the
# weighted mean, and each participant's own tensor is kept by the server, where other clients read it.
MEAN, UNIFORM, POOL = RULES = ("mean", "uniform", "pool")


class Others(NamedTuple):
    """Tensors of other clients that a client reads: ``tensors`` {name: [C, E, *shape]}, nearest first; ``present`` [C, E], else padding."""

    tensors: dict[str, Tensor]
    present: Tensor
