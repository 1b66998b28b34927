"""With which parameters the clients of a run begin: they follow from the seed, and are kept nowhere."""

from __future__ import annotations

from torch import Tensor

from pfedmma import rng
from pfedmma.config.schema import Config
from pfedmma.methods.base import Method
from pfedmma.stack.start import APART, Start


def start_of(method: Method, config: Config) -> Start:
    """What ``method.private_init`` says. What is exchanged or frozen is the same for all clients in any case."""
    layout, seed = method.layout, config.seed
    common = layout.pack(method.initial(rng.generator(seed, "init")))

    def private(client: int) -> Tensor:
        return layout.pack(method.initial(rng.generator(seed, "init", client)))[layout.private]

    apart = config.method.private_init == APART and layout.private.stop > layout.private.start
    return Start(common, private if apart else None)
