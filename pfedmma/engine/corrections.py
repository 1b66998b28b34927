"""What local training may add to the gradient of the exchanged tensors, as values.

- `Pull`, for FedProx (Li et al., arXiv 1812.06127) and Ditto (Li et al., arXiv 2012.04221): the client minimises
  f_i(x) + strength / 2 |x - w|^2, where w is what it received, so strength (x - w) is added.
- `Controls`, for SCAFFOLD (Karimireddy et al., arXiv 1910.06378): c - c_i is added, where c is the server's control variate and c_i the
  client's own. After K steps of plain SGD from w to y, c_i changes by (w - y) / (K lr) - c: option II of the paper. The client sends the
  change beside y.

A client that is narrower than others (`pfedmma.stack.widths`) reads of w and c what it has, and zeros: its own zeros stay.

Shape legend: C clients of a stack, k of them still training, X exchanged parameters of one client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.rules import CONTROL, State

_READ = "correction.read"  # the name of no tensor


class Correction(Protocol):
    """What is added, and what it takes for that."""

    def reads(self, ids: Sequence[int], states: ClientStates, server: Server) -> Tensor:
        """What stays the same while these clients train [C, X]."""

    def added(self, x: Tensor, read: Tensor) -> Tensor:
        """What is added to the gradient of the exchanged ``x`` [k, X]; ``read`` [k, X]: of these clients."""


@dataclass(frozen=True)
class Pull:
    """Towards what was received."""

    strength: float

    def reads(self, ids: Sequence[int], states: ClientStates, server: Server) -> Tensor:
        return states.received(ids, server.shared)

    def added(self, x: Tensor, read: Tensor) -> Tensor:
        return self.strength * (x - read)


@dataclass(frozen=True)
class Controls:
    """Against the drift of each client."""

    def reads(self, ids: Sequence[int], states: ClientStates, server: Server) -> Tensor:
        return states.received(ids, server.state[CONTROL]) - states.gather_controls(ids)

    def added(self, x: Tensor, read: Tensor) -> Tensor:
        return read

    def changes(self, received: Tensor, sent: Tensor, control: Tensor, steps: Sequence[int], rates: Tensor) -> Tensor:
        """By how much the clients' control variates change [C, X].

        Args:
            received: w [C, X]. sent: y [C, X]. control: c [C, X]. steps: K of each client. rates: learning rates [X], or one of all [].
        """
        counts = torch.tensor(steps, dtype=sent.dtype).to(sent.device).unsqueeze(1)
        return (received - sent) / (counts * rates) - control


def joined(fixed: State, read: Tensor | None) -> dict[str, Tensor]:
    """What the method keeps ``fixed`` while clients train, and what the correction reads [C, X], if anything: a step is given both."""
    return {**fixed} if read is None else {**fixed, _READ: read}


def split(fixed: State) -> tuple[dict[str, Tensor], Tensor | None]:
    """The inverse of `joined`."""
    return {name: tensor for name, tensor in fixed.items() if name != _READ}, fixed.get(_READ)
