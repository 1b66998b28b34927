"""With which parameters the clients of a run begin: they follow from the seed, and are kept nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.config.schema import Config
from pfedmma.methods.adapters.multimodal import AdapterSpec
from pfedmma.methods.base import Method
from pfedmma.methods.pfedmma import MultiModalAdapters
from pfedmma.stack.start import APART, Start
from pfedmma.stack.widths import Shapes, Widths, assigned


def start_of(method: Method, config: Config) -> Start:
    """What ``method.private_init`` says. What is exchanged or frozen is the same for all clients in any case."""
    layout, seed = method.layout, config.seed
    common = layout.pack(method.initial(rng.generator(seed, "init")))

    def private(client: int) -> Tensor:
        return layout.pack(method.initial(rng.generator(seed, "init", client)))[layout.private]

    apart = config.method.private_init == APART and layout.private.stop > layout.private.start
    return Start(common, private if apart else None)


def widths_of(method: Method, config: Config, device: torch.device) -> Widths | None:
    """Of the clients of a run whose adapters are not all as wide (``method.dims``); None where they are."""
    if not config.method.dims or not isinstance(method, MultiModalAdapters):
        return None
    shapes = {width: replace(method.spec, dim=width).shapes() for width in config.method.shares}
    return Widths.from_shapes(assigned(config.method.shares, config.data.clients, config.seed), method.layout, shapes, device)


def own_shapes(tensors: Mapping[str, Tensor], config: Config, client: int) -> Shapes:
    """The shapes of a client's adapters, from tensors as wide as the widest client's."""
    spec = AdapterSpec.from_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return replace(spec, dim=assigned(config.method.shares, config.data.clients, config.seed)[client]).shapes()
