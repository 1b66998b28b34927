"""A line of the costs for each method, dtype on the wire, number of clients and of ranks; its columns say their units."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pfedmma.config.schema import Config
from pfedmma.cost import memory
from pfedmma.cost.as_on_gpu import as_on_gpu
from pfedmma.cost.counting import Counted, count
from pfedmma.cost.exchange import Exchange, Rounds
from pfedmma.cost.links import Link
from pfedmma.cost.step import LocalStep, backbone_of_shapes, class_names
from pfedmma.methods import registry
from pfedmma.methods.base import Method
from pfedmma.records import columns
from pfedmma.system.console import warn
from pfedmma.system.errors import UserError


class Sweep(NamedTuple):
    """What the costs are said of besides methods: all combinations. ``classes`` of the prompts of a local step; 0: no step."""

    wires: Sequence[str]
    clients: Sequence[int]
    ranks: Sequence[int]
    links: Sequence[Link]
    classes: int


@dataclass(frozen=True)
class Line:
    """A method in one combination; ``step``: of one client, None where nobody knows. ``backbone``: how many parameters it has."""

    config: Config
    exchange: Exchange
    clients: int
    ranks: int
    links: Sequence[Link]
    backbone: int
    classes: int
    step: Counted | None

    @property
    def method(self) -> str:
        return self.config.method.name

    @property
    def state(self) -> int:
        """Bytes of one client's tensors while it trains."""
        return memory.while_training(self.exchange.method, self.config)

    @property
    def kept(self) -> int:
        """Bytes of one client's tensors between its rounds."""
        return memory.between_rounds(self.exchange.method, self.config)

    @property
    def delivery(self) -> int:
        """Bytes of the frozen weights in fp32, sent once."""
        return memory.NUMBER * self.backbone

    def seconds(self, link: Link) -> float:
        """Of a round's exchange, for a client behind ``link``."""
        return link.seconds(self.exchange.up, self.exchange.down)

    @property
    def cells(self) -> Mapping[str, Any]:
        """{column: value}, as in the CSV file."""
        exchange, rounds, layout = self.exchange, self.exchange.rounds, self.exchange.method.layout
        ring = exchange.ring(self.ranks)
        found = {
            "method": self.method,
            "backbone": self.config.backbone.name,
            "wire": exchange.wire,
            "clients": self.clients,
            columns.PARTICIPANTS: rounds.each,
            "rounds": rounds.count,
            "ranks": self.ranks,
            columns.TRAINED: layout.trained_count,
            columns.EXCHANGED: layout.exchanged_size,
            columns.UP: exchange.up,
            columns.DOWN: exchange.down,
            columns.UP_OF_RUN: exchange.up_of_run,
            columns.DOWN_OF_RUN: exchange.down_of_run,
            columns.RING: ring,
            "backbone_parameters": self.backbone,
            "backbone_bytes": self.delivery,
            "local_step_images": self.config.federation.batch_size,
            "local_step_classes": self.classes or None,
            "local_step_precision": self.config.backbone.precision,
            "local_step_flop": self.step and self.step.flop,
            "local_step_kept_bytes": self.step and self.step.kept_bytes,
            "client_state_bytes": self.state,
            "client_kept_bytes": self.kept,
        }
        for link in self.links:
            found |= {
                f"client_exchange_seconds_{link.name}_modelled": self.seconds(link),
                f"ring_exchange_seconds_{link.name}_modelled": 8 * ring / min(link.up, link.down),
                f"backbone_delivery_seconds_{link.name}_modelled": link.seconds(0, self.delivery),
            }
        return found


def lines(configs: Iterable[Config], sweep: Sweep, leave_out: bool = False) -> list[Line]:
    """Those of each method of ``configs``, which differ in the method alone. Nothing is loaded, read or trained.

    ``leave_out``: a method that cannot run on the backbone is left out, and a line on stderr says why.

    Raises:
        UserError: a backbone that cannot be had; or a method that does not fit it, if it is not left out or none fits.
    """
    found: list[Line] = []
    refused: dict[str, list[str]] = {}  # why -> methods
    with as_on_gpu():
        backbone, size = None, 0
        for config in configs:
            if backbone is None:
                backbone, size = backbone_of_shapes(config.backbone)
            try:
                method = registry.build(config.method, backbone)
            except UserError as error:
                if not leave_out:
                    raise
                refused.setdefault(str(error), []).append(config.method.name)
                continue
            found += _of_method(method, config, size, sweep)
    if refused and not found:
        raise UserError(next(iter(refused)))
    for why, names in refused.items():
        warn(f"left out: {', '.join(names)} ({why})")
    return found


def _of_method(method: Method, config: Config, size: int, sweep: Sweep) -> list[Line]:
    step = step_of(method, config, sweep.classes) if sweep.classes else None
    found = []
    for wire, clients, ranks in itertools.product(sweep.wires, sweep.clients, sweep.ranks):
        exchange = Exchange(method, Rounds.from_config(config, clients), wire, config.local.controls)
        found.append(Line(config, exchange, clients, ranks, sweep.links, size, sweep.classes, step))
    return found


def step_of(method: Method, config: Config, classes: int) -> Counted | None:
    """What a local step of one client executes and keeps, with a full batch; None, and a warning, where shapes alone do not tell."""
    names = class_names(2 * classes)[:classes]
    try:
        return count(LocalStep(method, config.optimizer, names, config.federation.batch_size).step(1))
    except (NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        warn(f"a local step of {config.method.name} is not counted: it reads numbers, and only shapes are known here ({reason})")
        return None
