"""What the clients of a rank have of their own: private tensors, optimizer state (momentum) where it persists, personal models, control
variates.

A client's own tensors exist from the first time it trains, since before that they follow from the seed (`pfedmma.stack.start`). What is
exchanged is the server's (`pfedmma.server.server`), and what is frozen the same for all.

Shape legend: C clients, P parameters of one client, T of them trained (they come first), X of these exchanged (they come before).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pfedmma.comm.assignment import Assignment
from pfedmma.stack.layout import Layout
from pfedmma.stack.offload import Budget, OffloadedRows
from pfedmma.stack.optim import OptimizerConfig, OptimizerState, initial_state
from pfedmma.stack.rules import CONTROL, OWN, PERSONAL, SERVERS
from pfedmma.stack.shared_rows import WHAT, SharedRows, create_rows
from pfedmma.stack.start import Start
from pfedmma.stack.widths import Widths

Rows = OffloadedRows | SharedRows


class ClientStates:
    """Own state by client id.

    ``own``: id -> [T - X], or [T] where clients answer with their own exchanged tensors (``answers``, see `pfedmma.stack.rules`).
    ``optimizer_rows``: id -> the optimizer state end to end, only with ``optimizer.state=persist``. ``widths_of``: of clients that are not
    all as wide. ``beside``: what else is kept, by kind: `PERSONAL` id -> [T] where clients answer with personal models, `CONTROL` id -> [X]
    where they have control variates (``controls``).
    """

    def __init__(
        self,
        layout: Layout,
        start: Start,
        optimizer: OptimizerConfig,
        device: torch.device,
        budget: Budget | None = None,
        answers: str = SERVERS,
        widths_of: Widths | None = None,
        controls: bool = False,
    ) -> None:
        self.widths_of = widths_of
        self.layout, self.device, self.optimizer, self.answers = layout, device, optimizer, answers
        self.initial = start.common.to(device)  # [P]
        self._drawn = start.private
        self.own_columns = slice(0 if answers == OWN else layout.exchanged_size, layout.trained_size)
        widths = {"own": self.own_columns.stop - self.own_columns.start, "optimizer": sum(self._optimizer_widths().values())}
        widths |= {PERSONAL: layout.trained_size} if answers == PERSONAL else {}
        widths |= {CONTROL: layout.exchanged_size} if controls else {}
        self._budgets = {name: (budget or Budget()).share(width / max(1, sum(widths.values()))) for name, width in widths.items()}
        self._keep_in({name: OffloadedRows(width, device, self._budgets[name]) for name, width in widths.items()})
        self._workspace = torch.empty(0, layout.size, device=device)
        self._coming: tuple[list[int], Future[Tensor]] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def _keep_in(self, stores: Mapping[str, Rows]) -> None:
        self.own, self.optimizer_rows, *_ = stores.values()
        self.beside = {name: rows for name, rows in stores.items() if name in (PERSONAL, CONTROL)}

    def share(self, assignment: Assignment) -> None:
        """Keep state from now on where all ranks of the node find it, before there is any. All ranks enter.

        Raises:
            RankFailure: there is no room for it.
        """
        widths = {"own": self.own.width, "optimizer": self.optimizer_rows.width} | {name: rows.width for name, rows in self.beside.items()}
        clients, budgets = assignment.near, self._budgets

        def create(folder: Path) -> None:
            for name, width in widths.items():
                create_rows(folder / name, len(clients), width)

        with assignment.nodes.shared_folder(WHAT, create) as folder:
            if folder is not None:
                self._keep_in(
                    {name: SharedRows(folder / name, clients, width, self.device, budgets[name].device) for name, width in widths.items()}
                )

    def for_newcomers(self, budget: Budget, private: Tensor | None = None) -> ClientStates:
        """An empty store of the same layout for clients that train alone: all tensors of theirs are their own.

        They begin as clients here do, or with the private tensors ``private`` [T - X].
        """
        start = Start(self.initial, self._drawn)
        if private is not None:
            common = self.initial.clone()
            common[self.layout.private] = private
            start = Start(common)
        return ClientStates(self.layout, start, replace(self.optimizer, state="reset"), self.device, budget, OWN, self.widths_of)

    def has_own(self, client: int) -> bool:
        """Whether a client's parameters may differ from those of another one that never trained."""
        own = self.own, self.beside.get(PERSONAL, self.own)
        alike = self._drawn is None and self.widths_of is None
        return not alike or any(client in rows and rows.width > 0 for rows in own)

    def exchanged_size(self, client: int) -> int:
        """How many numbers the client sends in a round."""
        return self.layout.exchanged_size if self.widths_of is None else self.widths_of.exchanged(client)

    def gather(self, ids: Sequence[int], shared: Tensor) -> Tensor:
        """The clients' parameters as one stack [C, P]: own private ones, and the server's ``shared`` [X]. A copy."""
        return self._fill(torch.empty(len(ids), self.layout.size, device=self.device), ids, shared)

    def gather_to_train(self, ids: Sequence[int], shared: Tensor) -> Tensor:
        """As `gather`, in memory that the next call uses again: fresh memory costs more than the copy."""
        if len(self._workspace) < len(ids):
            self._workspace = torch.empty(len(ids), self.layout.size, device=self.device)
        return self._fill(self._workspace[: len(ids)], ids, shared)

    def gather_to_answer(self, ids: Sequence[int], shared: Tensor) -> Tensor:
        """What the clients are tested and exported with [C, P]: as `gather`, or with their own last tensors, or their personal models."""
        stack = self.gather(ids, shared)
        if self.answers == OWN:
            return _replaced(stack[:, self.own_columns], self.own, ids, stack)
        return self._with_personal(stack, ids) if self.answers == PERSONAL else stack

    def gather_personal(self, ids: Sequence[int]) -> Tensor:
        """The clients' personal models [C, P], which begin as every client does. A copy."""
        stack = self.initial.repeat(len(ids), 1)
        for row, client in zip(stack[:, self.layout.private], ids, strict=True):
            row.copy_(self._untrained(client))
        if self.widths_of is not None:
            self.widths_of.cut(stack, ids)
        return self._with_personal(stack, ids)

    def _with_personal(self, stack: Tensor, ids: Sequence[int]) -> Tensor:
        return _replaced(stack[:, : self.layout.trained_size], self.beside[PERSONAL], ids, stack)

    def received(self, ids: Sequence[int], sent: Tensor) -> Tensor:
        """What each client has of what the server sends to all, ``sent`` [X]: as much as it is wide [C, X]. To be read only."""
        stack = sent.expand(len(ids), -1)
        if self.widths_of is None:
            return stack
        stack = stack.clone()
        self.widths_of.cut(stack, ids)
        return stack

    def gather_controls(self, ids: Sequence[int]) -> Tensor:
        """The clients' control variates [C, X]; zeros where a client has none yet. A copy."""
        controls = torch.zeros(len(ids), self.layout.exchanged_size, device=self.device)
        return _replaced(controls, self.beside[CONTROL], ids, controls)

    def keep_beside(self, kind: str, ids: Sequence[int], stack: Tensor) -> None:
        """Keep what local training leaves besides the clients' tensors; ``stack``: [C, T] of `PERSONAL`, [C, X] of `CONTROL`."""
        for client, row in zip(ids, stack, strict=True):
            self.beside[kind][client] = row

    def free_workspace(self) -> None:
        """Give back the memory that `gather_to_train` uses again."""
        self._workspace = self._workspace[:0].clone()

    def prefetch(self, ids: Sequence[int]) -> None:
        """Begin to bring what the next `gather` of these clients needs, where it does not rest at hand."""
        if ids and not self.own.at_hand(ids):
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="pfedmma-state")
            self._coming = list(ids), self._thread.submit(self._collect, list(ids))

    def _fill(self, stack: Tensor, ids: Sequence[int], shared: Tensor) -> Tensor:
        stack[:, : self.layout.exchanged_size] = shared
        stack[:, self.layout.trained_size :] = self.initial[self.layout.trained_size :]
        private = stack[:, self.layout.private]
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == list(ids):
            private.copy_(coming[1].result(), non_blocking=True)
        else:
            for row, kept in zip(private, self._private_rows(ids), strict=True):
                row.copy_(kept)
        if self.widths_of is not None:
            self.widths_of.cut(stack, ids)
        return stack

    def _private_rows(self, ids: Sequence[int]) -> list[Tensor]:
        start = self.layout.private.start - self.own_columns.start
        return [self.own[i][start:] if i in self.own else self._untrained(i) for i in ids]

    def _untrained(self, client: int) -> Tensor:
        return self.initial[self.layout.private] if self._drawn is None else self._drawn(client)

    def _collect(self, ids: Sequence[int]) -> Tensor:
        rows = torch.stack([row.cpu() for row in self._private_rows(ids)])
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def scatter(self, ids: Sequence[int], stack: Tensor) -> None:
        """Keep of ``stack`` [C, P] what is the clients' own; what is exchanged is the server's to set."""
        if self._coming is not None and set(ids) & set(self._coming[0]):
            self._coming = None  # it is out of date
        for client, row in zip(ids, stack[:, self.own_columns], strict=True):
            self.own[client] = row

    def gather_optimizer(self, ids: Sequence[int]) -> OptimizerState:
        """The clients' optimizer states as one stack; zeros where a client has none (always, with ``reset``)."""
        state = initial_state(self.optimizer, len(ids), self.layout.trained_size, self.device)
        for row, client in enumerate(ids):
            for name, tensor in self.optimizer_state(client).items():
                state[name][row] = tensor
        return state

    def scatter_optimizer(self, ids: Sequence[int], state: OptimizerState) -> None:
        """Keep the optimizer states of clients that persist."""
        for row, client in enumerate(ids):
            self.optimizer_rows[client] = torch.cat([tensor[row] for tensor in state.values()])

    def optimizer_state(self, client: int) -> dict[str, Tensor]:
        """What is kept of a client's optimizer {name: [T or 1]}; empty if there is nothing."""
        if client not in self.optimizer_rows:
            return {}
        widths = self._optimizer_widths()
        return dict(zip(widths, self.optimizer_rows[client].split(list(widths.values())), strict=True))

    def keep_optimizer_state(self, client: int, state: dict[str, Tensor]) -> None:
        """The inverse of `optimizer_state`; a KeyError if a part of the state is missing."""
        self.optimizer_rows[client] = torch.cat([state[name] for name in self._optimizer_widths()])

    def widths(self) -> dict[str, int]:
        """How many numbers a client's row of each kind has: ``private`` (what is its own), ``optimizer.<name>``, and kinds of `beside`."""
        own = {"private": self.own_columns.stop - self.own_columns.start}
        own |= {f"optimizer.{name}": width for name, width in self._optimizer_widths().items()}
        return own | {kind: rows.width for kind, rows in self.beside.items()}

    def _optimizer_widths(self) -> dict[str, int]:
        if self.optimizer.state == "reset":
            return {}
        state = initial_state(self.optimizer, 1, self.layout.trained_size, torch.device("meta"))
        return {name: tensor.shape[1] for name, tensor in state.items()}


def _replaced(columns: Tensor, rows: Rows, ids: Sequence[int], stack: Tensor) -> Tensor:
    """``stack`` with the ``rows`` of those clients that have one in ``columns`` [C, n], a view of it."""
    for place, client in zip(columns, ids, strict=True):
        if client in rows:
            place.copy_(rows[client])
    return stack
