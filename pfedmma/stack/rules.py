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

# What a client answers with when it is tested, exported or asked, in place of exchanged tensors: the server's, or its own last local ones;
# or in place of all that it trains: a model of its own that no round averages (of a client that has none yet, the server's tensors).
SERVERS, OWN, PERSONAL = ANSWERS = ("server", "own", "personal")

CONTROL = "control"  # SCAFFOLD's control variates, of a client and of the server [X]


class Others(NamedTuple):
    """Tensors of other clients that a client reads: ``tensors`` {name: [C, E, *shape]}, nearest first; ``present`` [C, E], else padding."""

    tensors: dict[str, Tensor]
    present: Tensor


class Given(NamedTuple):
    """What clients know besides their tensors. ``others``: what they read of others, None if there is nothing to read.

    ``held`` [C, K] bool: which of the classes at hand each client holds (the base classes in training; of novel classes none), for
    methods that know classes; None where nobody knows, as outside a run. ``correction`` [C, X]: what the correction of their gradients
    reads, where there is one (`pfedmma.engine.corrections`); methods have no use for it.
    """

    others: Others | None = None
    held: Tensor | None = None
    correction: Tensor | None = None


NOTHING = Given()
