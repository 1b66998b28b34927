"""Local training of a stack of clients in one pass.

All clients of the stack go through the one frozen backbone together; each has its own parameters, optimizer state, batches
and loss. Clients of unequal size are sorted so that those still training are always the first rows: a client that has run out
of batches costs nothing and its slice, momentum included, is not touched.

Shape legend: C clients in the stack, k of them still training, B images a client, P parameters of one client.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfedmma.data.partition.federated import Client
from pfedmma.engine.batches import by_steps
from pfedmma.engine.local import Trainer
from pfedmma.stack import optim
from pfedmma.stack.client_state import ClientStore
from pfedmma.system.errors import RankFailure

MOST_IN_A_PASS = 256  # clients, where the memory of a GPU decides


class PassWidth:
    """How many clients of a rank share a pass. ``fits`` says that the number is a guess, to be halved where memory runs out."""

    def __init__(self, now: int, fits: bool = False) -> None:
        self.now, self.fits = now, fits

    @classmethod
    def of(cls, wanted: str, device: torch.device) -> PassWidth:
        """From ``federation.clients_per_pass``."""
        if wanted != "auto":
            return cls(int(wanted))
        return cls(10) if device.type == "cpu" else cls(MOST_IN_A_PASS, fits=True)

    def shrink(self, tried: int) -> None:
        """After ``tried`` clients were too many. Raises a `RankFailure` if fewer cannot be tried."""
        if not self.fits or tried == 1:
            raise RankFailure(
                f"out of memory with {tried} clients in a pass; lower federation.batch_size or federation.stems_gb"
                + ("" if tried == 1 else ", or set federation.clients_per_pass=auto")
            )
        self.now = -(-tried // 2)


def train_cohort(trainer: Trainer, clients: Sequence[Client], store: ClientStore, round_: int, width: PassWidth) -> tuple[Tensor, Tensor]:
    """Train ``clients`` from the store, as many at a time as ``width`` says, and keep their private state.

    Returns:
        The shared part of every client after training [C, X] and the mean losses [C], both in the order of ``clients``.
    """
    shared = torch.empty(len(clients), trainer.layout.exchanged_size, device=store.device)
    losses = torch.empty(len(clients), device=store.device)
    place = {client.id: row for row, client in enumerate(clients)}
    left = by_steps(clients, trainer.work.batch_size)
    while left:
        group, after = left[: width.now], left[width.now :]
        rows = [place[client.id] for client in group]
        try:
            # Nothing of the group is kept before all of it is done, so it can be tried again in smaller parts.
            params, state, losses[rows] = train_group(trainer, group, after[: width.now], store, round_)
        except torch.OutOfMemoryError:
            width.shrink(len(group))
            store.free_workspace()
            continue
        shared[rows] = params[:, : trainer.layout.exchanged_size]
        store.scatter([client.id for client in group], params)
        if state is not None:
            store.scatter_optimizer([client.id for client in group], state)
        left = after
    return shared, losses


def train_group(
    trainer: Trainer, group: Sequence[Client], after: Sequence[Client], store: ClientStore, round_: int
) -> tuple[Tensor, optim.OptimizerState | None, Tensor]:
    """Train one stack, while the state of those ``after`` it is brought near.

    Returns:
        Its parameters [C, P], its optimizer state (None where that ends with the round), and its losses [C].
    """
    ids = [client.id for client in group]
    params = store.gather_to_train(ids)
    state = store.gather_optimizer(ids) if store.optimizer.state == "persist" else None
    store.prefetch([client.id for client in after])
    losses = trainer.train(group, params, state, round_, store.others(ids, trainer.method.reads))
    return params, state, losses
