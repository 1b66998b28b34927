"""Clients of two widths: all of them together, and a narrow one alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pfedmma.comm.world import World
from pfedmma.engine.cohort import Members
from pfedmma.engine.local_settings import LocalConfig
from pfedmma.methods.pfedmma import MultiModalAdapters
from pfedmma.server.controls import MeanControl
from pfedmma.server.mixed_widths import ByThoseWhoHaveIt
from pfedmma.server.rules import FEDAVG, SHARED
from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.rules import CONTROL
from pfedmma.stack.start import Start
from pfedmma.stack.widths import Widths
from tests.support import stacks

CPU = torch.device("cpu")
NARROW, WIDE = 3, 8
OF = {client: NARROW if client in (1, 2, 4) else WIDE for client in stacks.ALL}  # the width of each client
PLAIN = LocalConfig()


def method_of(clip: nn.Module, width: int) -> MultiModalAdapters:
    """pFedMMA of one width."""
    found = stacks.new_method(clip, dim=width, scale=0.3, blocks=2, activation="gelu")
    assert isinstance(found, MultiModalAdapters)
    return found


def new_run(clip: nn.Module, optimizer: OptimizerConfig, config: LocalConfig = PLAIN) -> tuple[MultiModalAdapters, Members]:
    """Clients as wide as `OF` says, of whom none has trained, and a server that has moved away from where it began."""
    method = method_of(clip, WIDE)
    shapes = {width: dataclasses.replace(method.spec, dim=width).shapes() for width in (NARROW, WIDE)}
    widths = Widths.from_shapes(OF, method.layout, shapes, CPU)
    start, shared = (stacks.drawn_state(method, number) for number in (-1, -2))
    return method, members_of(method, start, shared[: method.layout.exchanged_size], optimizer, config, widths)


def alone(clip: nn.Module, wide: Members, optimizer: OptimizerConfig, config: LocalConfig) -> tuple[MultiModalAdapters, Members]:
    """A narrow client with nobody else, who begins as in ``wide``."""
    method, layout = method_of(clip, NARROW), wide.states.layout
    start = narrow(wide.states.initial, layout, method.layout)
    return method, members_of(method, start, start[: method.layout.exchanged_size], optimizer, config)


def members_of(
    method: MultiModalAdapters, start: Tensor, shared: Tensor, optimizer: OptimizerConfig, config: LocalConfig, widths: Widths | None = None
) -> Members:
    """All clients at ``start`` [P], the server at ``shared`` [X]."""
    layout, answers = method.layout, config.answers(method.answers)
    states = ClientStates(layout, Start(start), optimizer, CPU, answers=answers, widths_of=widths, controls=config.controls)
    rules, begin = FEDAVG, {SHARED: shared}
    if widths is not None:
        rules = dataclasses.replace(rules, transforms=(ByThoseWhoHaveIt(widths),))
    if config.controls:
        controlled = MeanControl.from_images(layout, dict(enumerate(stacks.SIZES)), CPU, widths)
        rules, begin = dataclasses.replace(rules, controlled=controlled), begin | {CONTROL: torch.zeros_like(shared)}
    return Members(states, Server(layout, begin, World(0, 1, CPU), rules))


def narrow(row: Tensor, wide: Layout, own: Layout) -> Tensor:
    """The leading blocks, end to end, of a wide client's vector [P], or of its exchanged part [X]."""
    tensors = wide.views(torch.cat([row, row.new_zeros(wide.size - len(row))]))
    blocks: Mapping[str, Tensor] = {name: tensors[name][tuple(map(slice, shape))] for name, shape in own.shapes.items()}
    return own.pack(blocks)[: own.size if len(row) == wide.size else own.exchanged_size]
