"""Local training: the epochs of a stack of clients in one pass.

All clients of the stack go through the one frozen backbone together; each has its own parameters, optimizer state, batches and loss. A
client that has run out of batches costs nothing, and its slice, momentum included, is not touched.

Shape legend: C clients in the stack, k of them still training, B images a client, P parameters of one client, T of them trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pfedmma.accuracy.evaluator import Told
from pfedmma.data.partition.federated import Client
from pfedmma.engine.batches import Batch, Batches, Coming, Stack, steps
from pfedmma.engine.corrections import Controls, Correction, Pull, joined, split
from pfedmma.engine.graphs import Graphs
from pfedmma.methods.base import SEEDS, Method
from pfedmma.methods.forward import Forward
from pfedmma.server.rules import SHARED
from pfedmma.server.server import Server
from pfedmma.stack import optim
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import LossScale
from pfedmma.stack.rules import CONTROL, NOTHING, Given, State
from pfedmma.system.errors import RankFailure

AFTER_THE_ROUNDS = 0  # stands for a round in the keys of draws where clients train when all rounds are over
# (number of the step from 0, the k clients that took it, their parameters [k,P] after it)
AfterStep = Callable[[int, Sequence[Client], Tensor], None]


def nothing_more(number: int, clients: Sequence[Client], params: Tensor) -> None:
    """Nobody wants to see them."""


def counted(told: Told, total: int) -> AfterStep:
    """Tells after each step how many of ``total`` local steps are done, those of each client counted for itself."""
    done = 0

    def count(number: int, clients: Sequence[Client], params: Tensor) -> None:
        nonlocal done
        done += len(clients)
        told(done, total)

    return count


class Phase(NamedTuple):
    """A part of local training: the ``epochs`` of the round in which the ``columns`` of the stack are trained, and no others."""

    columns: slice
    epochs: range


@dataclass(frozen=True)
class LocalTraining:
    """Everything that local training reads; it changes only the stack it is given.

    ``phases``: one after another, no column in two of them; empty: the ``columns``, in all epochs. ``columns``: of the stack, those that
    a step trains; None: all that are not frozen. ``correction``: of the gradient of exchanged tensors. ``personal``: how strongly the
    personal model that each client trains as well is pulled to what was received (Ditto); None: there is none. ``answers_only``: what
    training leaves is a client's answer, and nothing else. ``after_step`` sees every step. ``graphs``: of steps on a GPU.
    """

    layout: Layout
    batches: Batches
    phases: tuple[Phase, ...] = ()
    columns: slice | None = None
    correction: Correction | None = None
    personal: Pull | None = None
    answers_only: bool = False
    after_step: AfterStep = nothing_more
    graphs: Graphs | None = None

    def alone(self, columns: slice, epochs: int) -> LocalTraining:
        """As plain training for so many ``epochs``, of these columns alone: what clients do for themselves when the rounds are over."""
        batches = replace(self.batches, work=replace(self.batches.work, epochs=epochs))
        return replace(self, batches=batches, phases=(Phase(columns, range(epochs)),), correction=None, personal=None)

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
        fixed = joined(self.forward.fixed(self.layout.views(params), given), given.correction)
        begun = self.in_turn[0]
        for number, (now, batch) in enumerate(self.batches_of(clients, round_, coming or Coming())):
            if now is not begun:  # the steps that Adam counts are those of a tensor
                state["step"].zero_()
                begun = now
            k = len(batch.labels)
            rows, constant = ({name: tensor[:k] for name, tensor in tensors.items()} for tensors in (state, fixed))
            inputs, columns = (params[:k], rows, constant, batch, scale), (now.trained.start, now.trained.stop)
            losses[number, :k] = now.step(*inputs) if self.graphs is None else self.graphs(now.step, columns, inputs)
            self.after_step(number, clients[:k], params[:k])
        mean = losses.sum(dim=0) / counts
        finite = torch.isfinite(mean) & torch.isfinite(params).all(dim=1)
        if not bool(finite.all()):  # the one wait for the device in a local training
            _name_first_bad(losses, finite, clients, round_)
        return mean

    @cached_property
    def of_personal_models(self) -> LocalTraining | None:
        """The training of the clients' personal models; None where they have none."""
        return None if self.personal is None else replace(self, correction=self.personal, personal=None)

    @property
    def trained(self) -> slice:
        """The columns that a step trains."""
        own, all_ = self.columns or self.layout.trained, self.layout.trained
        return slice(max(own.start, all_.start), min(own.stop, all_.stop))

    @property
    def in_turn(self) -> tuple[LocalTraining, ...]:
        """Itself, or the training of each phase."""
        return self._of_phases or (self,)

    @cached_property
    def _of_phases(self) -> tuple[LocalTraining, ...]:
        return tuple(replace(self, phases=(), columns=phase.columns) for phase in self.phases)

    @property
    def epochs(self) -> tuple[range | None, ...]:
        """Those of each of `in_turn`; None: all."""
        return tuple(phase.epochs for phase in self.phases) or (None,)

    def opening(self, clients: Sequence[Client], round_: int) -> Stack:
        """The clients as the stack with which their round begins."""
        return Stack(clients, round_, self.epochs[0])

    def batches_of(self, clients: Sequence[Client], round_: int, coming: Coming) -> Iterator[tuple[LocalTraining, Batch]]:
        """The batches of a round one after another, each with what trains on it."""
        stacks = [Stack(clients, round_, epochs) for epochs in self.epochs]
        for now, stack, then in zip(self.in_turn, stacks, (*stacks[1:], coming.after), strict=True):
            coming.after = then
            for batch in self.batches.of_round(stack, coming):
                yield now, batch

    def shared_steps(self, client: Client) -> int:
        """How many local steps of a round train what a client exchanges."""
        pairs = zip(self.in_turn, self.epochs, strict=True)
        return sum(steps(client, self.batches.work, epochs) for now, epochs in pairs if now.trained.start < self.layout.exchanged_size)

    def control_changes(self, clients: Sequence[Client], sent: Tensor, states: ClientStates, server: Server) -> Tensor | None:
        """What clients send beside their tensors ``sent`` [C,X]: the changes of their control variates [C,X], where there are any."""
        if not isinstance(self.correction, Controls):
            return None
        ids = [client.id for client in clients]
        received, control = (states.received(ids, server.state[name]) for name in (SHARED, CONTROL))
        lr = torch.full((), self.batches.work.optimizer.lr, device=sent.device)
        rates = lr if self.rates is None else self.rates[: self.layout.exchanged_size]
        return self.correction.changes(received, sent, control, [self.shared_steps(client) for client in clients], rates)

    def step(self, params: Tensor, state: optim.OptimizerState, fixed: State, batch: Batch, scale: LossScale) -> Tensor:
        """One optimizer step of k clients in place; returns their losses [k].

        ``fixed``: what `Forward.fixed` gave for these clients, and what the correction reads.
        """
        columns = self.trained
        own = params[:, columns]
        leaves = self.leaves(columns, own)
        fixed, read = split(fixed)
        state_now = {**self.layout.views(params), **leaves, **fixed, SEEDS: batch.seeds}
        inputs = batch.images, batch.labels, batch.weights
        losses, grads = self.forward.gradients(state_now, list(leaves.values()), inputs, scale.scaled)
        if grads is not None:  # a method without trained tensors has no gradient
            if self.correction is not None and read is not None and columns.start == 0:
                exchanged = slice(0, self.layout.exchanged_size)
                grads[:, exchanged] += scale.scaled_rows(self.correction.added(own[:, exchanged], read))
            rates = None if self.rates is None else self.rates[columns]
            scale.guarded_step(self.batches.work.optimizer, own, grads, optim.part(state, columns), rates)
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
