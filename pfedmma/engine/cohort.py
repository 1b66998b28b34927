"""The participants of a round that a rank trains: trained in passes of as many clients as memory takes.

Shape legend: C clients, P parameters of one client, X of them exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pfedmma.data.partition.federated import Client, held_classes
from pfedmma.engine.batches import Coming, LocalWork, Stack, by_steps
from pfedmma.engine.local import LocalTraining
from pfedmma.server.server import Server
from pfedmma.stack import optim
from pfedmma.stack.answers import Answers
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.rules import CONTROL, PERSONAL, Given
from pfedmma.system.errors import RankFailure

ON_A_CPU = 10  # clients of a pass
IMAGES_IN_A_PASS = 320  # on a GPU, of all clients together: ten times 32 keep it busy, and more cost memory alone


class PassWidth:
    """How many clients of a rank share a pass. ``fits`` says that the number is a guess, to be halved where memory runs out."""

    def __init__(self, now: int, fits: bool = False) -> None:
        self.now, self.fits = now, fits

    @classmethod
    def from_setting(cls, wanted: str, device: torch.device, images: int, passes: int = 1) -> PassWidth:
        """From ``federation.clients_per_pass``; ``images``: of one client in a step, see `largest_step`; ``passes``: of `Method`."""
        if wanted != "auto":
            return cls(int(wanted))
        if device.type == "cpu":
            return cls(max(1, ON_A_CPU // passes))
        return cls(max(1, IMAGES_IN_A_PASS // (images * passes)), fits=True)

    def next_of(self, left: Sequence[Client]) -> tuple[Sequence[Client], Sequence[Client]]:
        """Those of the clients left who come next, in as few passes as can be and none much smaller than the others; and the rest."""
        passes = max(1, -(-len(left) // self.now))
        count = -(-len(left) // passes)
        return left[:count], left[count:]

    def shrink(self, tried: int) -> None:
        """After ``tried`` clients were too many. Raises a `RankFailure` if fewer cannot be tried."""
        if not self.fits or tried == 1:
            raise RankFailure(
                f"out of memory with {tried} clients in a pass; lower federation.batch_size or federation.stems_gb"
                + ("" if tried == 1 else ", or set federation.clients_per_pass=auto")
            )
        self.now = -(-tried // 2)


def largest_step(clients: Iterable[Client], work: LocalWork) -> int:
    """How many images of one client a step has at most."""
    return max((min(work.batch_size, len(client.train)) for client in clients), default=work.batch_size)


class Trained(NamedTuple):
    """What local training came to: the clients' exchanged tensors [C, X], their mean losses [C], and seconds spent waiting for images.

    ``controls`` [C, X]: the changes of their control variates, where they have such.
    """

    uploads: Tensor
    losses: Tensor
    waited: float
    controls: Tensor | None = None


class Members(NamedTuple):
    """The state of all participants: what clients have of their own, and what the server has."""

    states: ClientStates
    server: Server

    def answers(self) -> Answers:
        """What clients are tested with now."""
        return Answers(self.states, self.server.shared, self.server.pool, self.server.rules.reads)


def train_cohort(
    training: LocalTraining, clients: Sequence[Client], members: Members, round_: int, width: PassWidth, coming: Coming | None = None
) -> Trained:
    """Train ``clients``, as many at a time as ``width`` says, and keep what is their own; the results are in the order of ``clients``.

    ``coming``: batches that are staged ahead, of these clients and then of those of the next round.
    """
    if coming is None:
        with Coming() as coming:
            return train_cohort(training, clients, members, round_, width, coming)
    states = members.states
    uploads = torch.empty(len(clients), training.layout.exchanged_size, device=states.device)
    controls = torch.empty_like(uploads) if CONTROL in states.beside else None
    losses = torch.empty(len(clients), device=states.device)
    row_of = {client.id: row for row, client in enumerate(clients)}
    left: Sequence[Client] = by_steps(clients, training.batches.work)
    while left:
        group, rest = width.next_of(left)
        after, _ = width.next_of(rest)
        rows = [row_of[client.id] for client in group]
        coming.after = training.opening(after, round_) if after else _first_of(coming.next_round, training, width)
        try:
            # Nothing of the group is kept before all of it is done, so it can be tried again in smaller parts.
            left_with = _train_group(training, group, after, members, round_, coming)
        except torch.OutOfMemoryError:
            width.shrink(len(group))
            coming.close()
            states.free_workspace()
            continue
        # Row by row: an index made of a list would go to the device, and be waited for.
        torch._foreach_copy_([losses[row] for row in rows], list(left_with.losses))
        torch._foreach_copy_([uploads[row] for row in rows], list(left_with.params[:, : training.layout.exchanged_size]))
        if controls is not None and left_with.controls is not None:
            torch._foreach_copy_([controls[row] for row in rows], list(left_with.controls))
        left_with.keep(states, [client.id for client in group], training.answers_only)
        left = rest
    return Trained(uploads, losses, coming.waiting.take(), controls)


class Left(NamedTuple):
    """What a stack is left with: parameters [C, P], mean losses [C], optimizer state (None where that ends with the round).

    Where there are such: the personal models [C, P], and the changes of the control variates [C, X].
    """

    params: Tensor
    losses: Tensor
    state: optim.OptimizerState | None
    personal: Tensor | None
    controls: Tensor | None

    def keep(self, states: ClientStates, ids: Sequence[int], answers_only: bool) -> None:
        """Keep what is the clients' own; ``answers_only``: the parameters are what they answer with from now on, and else nothing."""
        trained = slice(0, states.layout.trained_size)
        if answers_only:
            states.keep_beside(PERSONAL, ids, self.params[:, trained])
            return
        states.scatter(ids, self.params)
        if self.state is not None:
            states.scatter_optimizer(ids, self.state)
        if self.personal is not None:
            states.keep_beside(PERSONAL, ids, self.personal[:, trained])
        if self.controls is not None:
            states.keep_beside(CONTROL, ids, states.gather_controls(ids) + self.controls)


def _first_of(stack: Stack | None, training: LocalTraining, width: PassWidth) -> Stack | None:
    """Those of its clients that train first; None where there are none."""
    if stack is None or not stack.clients:
        return None
    return training.opening(width.next_of(by_steps(stack.clients, training.batches.work))[0], stack.round)


def _train_group(
    training: LocalTraining, group: Sequence[Client], after: Sequence[Client], members: Members, round_: int, coming: Coming
) -> Left:
    """Train one stack, while the state of those ``after`` it is brought near."""
    states, server = members
    ids = [client.id for client in group]
    held = held_classes(group, len(training.forward.classes)).to(states.device) if training.method.knows_classes else None
    given = Given(server.others(ids), held, training.correction.reads(ids, states, server) if training.correction else None)
    personal = _train_personal(training.of_personal_models, group, members, round_, given)
    params = states.gather_to_train(ids, server.shared)
    state = states.gather_optimizer(ids) if states.optimizer.state == "persist" and not training.answers_only else None
    states.prefetch([client.id for client in after])
    losses = training.train(group, params, state, round_, given, coming)
    changes = training.control_changes(group, params[:, : training.layout.exchanged_size], states, server)
    return Left(params, losses, state, personal, changes)


def _train_personal(training: LocalTraining | None, group: Sequence[Client], members: Members, round_: int, given: Given) -> Tensor | None:
    """The personal models [C, P] of one stack, trained on the same batches as the others; None where there are none."""
    if training is None or training.correction is None:
        return None
    states, server = members
    ids = [client.id for client in group]
    params = states.gather_personal(ids)
    with Coming() as coming:
        training.train(group, params, None, round_, given._replace(correction=training.correction.reads(ids, states, server)), coming)
    return params
