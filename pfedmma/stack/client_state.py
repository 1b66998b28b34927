"""The state of all clients that a rank hosts.

The exchanged tensors are held once; a client's private tensors exist from the first time it trains, since before that they
follow from the seed. Shape legend: C clients, P parameters of one client, X of them exchanged (they come first).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from pfedmma.stack.layout import Layout
from pfedmma.stack.offload import Bank, Budget
from pfedmma.stack.optim import OptimizerConfig, OptimizerState, initial_state
from pfedmma.stack.pool import Pool
from pfedmma.stack.rules import POOL, Others


class ClientStore:
    """Private state by client id, and the one shared state [X].

    ``private``: id -> [P - X]. ``optimizer_rows``: id -> the optimizer state end to end, only with ``optimizer.state=persist``.
    """

    def __init__(
        self, layout: Layout, initial: Tensor, optimizer: OptimizerConfig, device: torch.device, budget: Budget | None = None
    ) -> None:
        self.layout, self.device, self.optimizer = layout, device, optimizer
        self.initial = initial.to(device)  # [P], of a client that has not trained
        self.shared = self.initial[: layout.exchanged_size].clone()
        self.pool = Pool()  # what the server keeps of each participant, of tensors under rule `pool`
        widths = layout.size - layout.exchanged_size, sum(self._state_widths().values())
        budget = budget or Budget()
        self.private, self.optimizer_rows = (Bank(width, device, budget.share(width / max(1, sum(widths)))) for width in widths)
        self._workspace = torch.empty(0, layout.size, device=device)
        self._coming: tuple[list[int], Future[Tensor]] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def has_own(self, client: int) -> bool:
        """Whether a client's parameters differ from those of a client that never trained."""
        return client in self.private and self.private.width > 0

    def gather(self, ids: Sequence[int]) -> Tensor:
        """A copy of the clients' parameters as one stack [C, P]."""
        return self._fill(torch.empty(len(ids), self.layout.size, device=self.device), ids)

    def gather_to_train(self, ids: Sequence[int]) -> Tensor:
        """As `gather`, in memory that the next call uses again: fresh memory costs more than the copy."""
        if len(self._workspace) < len(ids):
            self._workspace = torch.empty(len(ids), self.layout.size, device=self.device)
        return self._fill(self._workspace[: len(ids)], ids)

    def free_workspace(self) -> None:
        """Give back the memory that `gather_to_train` uses again."""
        self._workspace = self._workspace[:0].clone()

    def prefetch(self, ids: Sequence[int]) -> None:
        """Begin to bring what the next `gather` of these clients needs, where it does not rest at hand."""
        if ids and not self.private.at_hand(ids):
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="pfedmma-state")
            self._coming = list(ids), self._thread.submit(self._collect, list(ids))

    def _fill(self, stack: Tensor, ids: Sequence[int]) -> Tensor:
        stack[:, : self.layout.exchanged_size] = self.shared
        own = stack[:, self.layout.exchanged_size :]
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == list(ids):
            own.copy_(coming[1].result(), non_blocking=True)
        else:
            for place, row in zip(own, self._rows(ids), strict=True):
                place.copy_(row)
        return stack

    def _rows(self, ids: Sequence[int]) -> list[Tensor]:
        untouched = self.initial[self.layout.exchanged_size :]
        return [self.private.get(i, untouched) for i in ids]

    def _collect(self, ids: Sequence[int]) -> Tensor:
        rows = torch.stack([row.cpu() for row in self._rows(ids)])
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def others(self, ids: Sequence[int], limit: int) -> Others | None:
        """What clients read of ``limit`` others at most; None if there is nothing to read."""
        if POOL not in self.layout.columns:
            return None
        columns = self.layout.columns[POOL]
        found = self.pool.nearest(ids, self.shared[columns], limit)
        return None if found is None else Others(self.layout.part(columns, found[0]), found[1])

    def scatter(self, ids: Sequence[int], stack: Tensor) -> None:
        """Keep the private part of ``stack`` [C, P]; the shared part is the server's to set."""
        if self._coming is not None and set(ids) & set(self._coming[0]):
            self._coming = None  # it is out of date
        for client, row in zip(ids, stack[:, self.layout.exchanged_size :], strict=True):
            self.private[client] = row

    def gather_optimizer(self, ids: Sequence[int]) -> OptimizerState:
        """The clients' optimizer states as one stack; zeros where a client has none (always, with ``reset``)."""
        state = initial_state(self.optimizer, len(ids), self.layout.size, self.device)
        for row, client in enumerate(ids):
            for name, tensor in self.optimizer_state(client).items():
                state[name][row] = tensor
        return state

    def scatter_optimizer(self, ids: Sequence[int], state: OptimizerState) -> None:
        """Keep the optimizer states, with ``optimizer.state=persist``; forget them otherwise."""
        if self.optimizer.state == "persist":
            for row, client in enumerate(ids):
                self.optimizer_rows[client] = torch.cat([tensor[row] for tensor in state.values()])

    def optimizer_state(self, client: int) -> dict[str, Tensor]:
        """What is kept of a client's optimizer {name: [P or 1]}; empty if there is nothing."""
        if client not in self.optimizer_rows:
            return {}
        widths = self._state_widths()
        return dict(zip(widths, self.optimizer_rows[client].split(list(widths.values())), strict=True))

    def optimizer_state_is_whole(self, state: dict[str, Tensor]) -> bool:
        return state.keys() == self._state_widths().keys()

    def keep_optimizer_state(self, client: int, state: dict[str, Tensor]) -> None:
        """The inverse of `optimizer_state`."""
        self.optimizer_rows[client] = torch.cat([state[name] for name in self._state_widths()])

    def _state_widths(self) -> dict[str, int]:
        if self.optimizer.state == "reset":
            return {}
        return {name: tensor.shape[1] for name, tensor in initial_state(self.optimizer, 1, self.layout.size, torch.device("meta")).items()}
