"""The state of all clients that a rank hosts.

The exchanged tensors are held once; a client's private tensors exist from the first time it trains, since before that they
follow from the seed. Shape legend: C clients, P parameters of one client, X of them exchanged (they come first).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfedmma.adapters.stacked import Layout
from pfedmma.optim import OptimizerConfig, OptimizerState, initial_state


class ClientStore:
    """Private state by client id, and the one shared state [X]."""

    def __init__(self, layout: Layout, initial: Tensor, optimizer: OptimizerConfig, device: torch.device) -> None:
        self.layout, self.device, self.optimizer = layout, device, optimizer
        self._initial = initial.to(device)
        self.shared = self._initial[: layout.exchanged_size].clone()
        self.private: dict[int, Tensor] = {}  # id -> [P - X]
        self.optimizer_states: dict[int, dict[str, Tensor]] = {}  # id -> {name: [P]}, only with optimizer.state=persist

    def gather(self, ids: Sequence[int]) -> Tensor:
        """A copy of the clients' parameters as one stack [C, P]."""
        untouched = self._initial[self.layout.exchanged_size :]
        stack = torch.empty(len(ids), self.layout.size, device=self.device)
        stack[:, : self.layout.exchanged_size] = self.shared
        if ids:
            torch.stack([self.private.get(i, untouched) for i in ids], out=stack[:, self.layout.exchanged_size :])
        return stack

    def scatter(self, ids: Sequence[int], stack: Tensor) -> None:
        """Keep the private part of ``stack`` [C, P]; the shared part is the server's to set."""
        for client, row in zip(ids, stack[:, self.layout.exchanged_size :], strict=True):
            self.private[client] = row.clone()  # by itself: a view would keep the whole stack in memory

    def gather_optimizer(self, ids: Sequence[int]) -> OptimizerState:
        """The clients' optimizer states as one stack; zeros where a client has none (always, with ``reset``)."""
        state = initial_state(self.optimizer, len(ids), self.layout.size, self.device)
        for row, client in enumerate(ids):
            for name, tensor in self.optimizer_states.get(client, {}).items():
                state[name][row] = tensor
        return state

    def scatter_optimizer(self, ids: Sequence[int], state: OptimizerState) -> None:
        """Keep the optimizer states, with ``optimizer.state=persist``; forget them otherwise."""
        if self.optimizer.state == "persist":
            for row, client in enumerate(ids):
                self.optimizer_states[client] = {name: tensor[row].clone() for name, tensor in state.items()}
