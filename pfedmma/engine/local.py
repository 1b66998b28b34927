"""Local training: the epochs of a stack of clients in one pass.

All clients of the stack go through the one frozen backbone together; each has its own parameters, optimizer state, batches and loss. A
client that has run out of batches costs nothing, and its slice, momentum included, is not touched.

Shape legend: C clients in the stack, k of them still training, B images a client, P parameters of one client, T of them trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pfedmma.data.partition.federated import Client
from pfedmma.engine.batches import Batch, Batches, Coming, Stack, steps
from pfedmma.engine.graphs import Graphs
from pfedmma.methods.base import SEEDS, Method
from pfedmma.methods.forward import Forward
from pfedmma.stack import optim
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import LossScale
from pfedmma.stack.rules import NOTHING, Given, State
from pfedmma.system.errors import RankFailure

AFTER_THE_ROUNDS = 0  # stands for a round in the keys of draws where clients train when all rounds are over
# (number of the step from 0, the k clients that took it, their parameters [k,P] after it)
AfterStep = Callable[[int, Sequence[Client], Tensor], None]


def nothing_more(number: int, clients: Sequence[Client], params: Tensor) -> None:
    """Nobody wants to see them."""


@dataclass(frozen=True)
class LocalTraining:
    """Everything that local training reads; it changes only the stack it is given.

    ``first_trained``: the columns of the stack before this one, all of exchanged tensors, stay as they are. ``after_step`` sees every step.
    ``graphs``: of steps on a GPU.
    """

    layout: Layout
    batches: Batches
    first_trained: int = 0
    after_step: AfterStep = nothing_more
    graphs: Graphs | None = None

    @property
    def forward(self) -> Forward:
        """The method on the prompts that clients train with."""
        return self.batches.forward

    @property
    def method(self) -> Method:
        return self.forward.method

    def train(
        self,
        clients: Sequence[Client],
        params: Tensor,
        state: optim.OptimizerState | None,
        round_: int,
        given: Given = NOTHING,
        coming: Coming | None = None,
    ) -> Tensor:
        """Train the stack in place.

        Args:
            clients: C clients, most steps first (`by_steps`). params: [C,P]. state: optimizer state, each [C,...]; None for a fresh one.
            given: what the clients know besides their tensors. coming: batches that are staged ahead.

        Returns:
            The mean training loss over each client's steps [C].

        Raises:
            RankFailure: a loss is not finite; names client, round and batch.
        """
        work = self.batches.work
        if state is None:
            state = optim.initial_state(work.optimizer, len(params), self.layout.trained_size, params.device)
        state = optim.in_round(work.optimizer, state, round_)
        counts = torch.tensor([steps(client, work) for client in clients])
        losses = torch.zeros(int(counts.max()), len(clients), device=params.device)
        counts = self.batches.staging.put(counts)
        scale = LossScale(len(clients), params.device, enabled=self.method.backbone.precision == "fp16")
        fixed = self.forward.fixed(self.layout.views(params), given)
        for number, batch in enumerate(self.batches.of_round(Stack(clients, round_), coming or Coming())):
            k = len(batch.labels)
            rows, constant = ({name: tensor[:k] for name, tensor in tensors.items()} for tensors in (state, fixed))
            inputs = params[:k], rows, constant, batch, scale
            losses[number, :k] = self.step(*inputs) if self.graphs is None else self.graphs(self.step, self.first_trained, inputs)
            self.after_step(number, clients[:k], params[:k])
        mean = losses.sum(dim=0) / counts
        finite = torch.isfinite(mean) & torch.isfinite(params).all(dim=1)
        if not bool(finite.all()):  # the one wait for the device in a local training
            _name_first_bad(losses, finite, clients, round_)
        return mean

    def step(self, params: Tensor, state: optim.OptimizerState, fixed: State, batch: Batch, scale: LossScale) -> Tensor:
        """One optimizer step of k clients in place; returns their losses [k]. ``fixed``: what `Forward.fixed` gave for these clients."""
        first = max(self.first_trained, self.layout.trained.start)
        columns = slice(first, self.layout.trained.stop)
        own = params[:, columns]
        leaves = self.leaves(columns, own)
        state_now = {**self.layout.views(params), **leaves, **fixed, SEEDS: batch.seeds}
        inputs = batch.images, batch.labels, batch.weights
        losses, grads = self.forward.gradients(state_now, list(leaves.values()), inputs, scale.scaled)
        if grads is not None:  # a method without trained tensors has no gradient
            rates = None if self.rates is None else self.rates[first:]
            scale.guarded_step(self.batches.work.optimizer, own, grads, optim.columns(state, first), rates)
        return losses

    def leaves(self, columns: slice, own: Tensor) -> dict[str, Tensor]:
        """The trained tensors in ``columns``, views of ``own`` [k,n] that take a gradient.

        In mixed precision, those that act in matrix products alone are rounded here, all at once, instead of one by one.
        """
        views, rounded = self.layout.part(columns, own), self.method.in_products
        if rounded and self.method.backbone.dtype != own.dtype:
            low = self.layout.part(columns, own.to(self.method.backbone.dtype))
            views |= {name: tensor for name, tensor in low.items() if name in rounded}
        return {name: view.detach().requires_grad_() for name, view in views.items()}

    @cached_property
    def rates(self) -> Tensor | None:
        """The learning rate of each trained parameter [T], if the method wants other ones than ``optimizer.lr`` for some."""
        own = self.method.learning_rates
        if not own:
            return None
        lr = self.batches.work.optimizer.lr
        each = {name: torch.full(shape, own.get(name, lr)) for name, shape in self.layout.shapes.items()}
        return self.batches.staging.put(self.layout.pack(each)[: self.layout.trained_size])


def _name_first_bad(losses: Tensor, finite: Tensor, clients: Sequence[Client], round_: int) -> None:
    remedy, when = "lower optimizer.lr, or set optimizer.clip", f"in round {round_}" if round_ else "after the last round"
    for number, row in (~torch.isfinite(losses)).nonzero().tolist():
        value = losses[number, row].item()
        raise RankFailure(f"the training loss of client {clients[row].id} {when}, batch {number + 1} is {value}; {remedy}")
    row = int((~finite).nonzero()[0])
    raise RankFailure(f"the last batch of client {clients[row].id} {when} left parameters that are not finite; {remedy}")
