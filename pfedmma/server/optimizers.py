"""What the server makes of the mean of the uploads besides taking it: a step of an optimizer along the way that the clients went.

The mean way of the participants, delta = mean - x, is a pseudo-gradient (Reddi et al., Adaptive Federated Optimization, arXiv 2003.00295;
momentum: Hsu et al., arXiv 1909.06335). With m, v of the rounds before, everything element by element:

- momentum: m = b1 m + delta; x += lr m
- adagrad, adam, yogi: m = b1 m + (1 - b1) delta; x += lr m / (sqrt(v) + tau), where v = v + delta^2 (adagrad), b2 v + (1 - b2) delta^2
  (adam) or v - (1 - b2) delta^2 sign(v - delta^2) (yogi). v begins at tau^2; there is no correction for the first rounds, as in the paper.

Shape legend: X exchanged parameters of one client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.server.rules import SHARED, ServerState, Uploads

MOMENT, SQUARE = "moment", "square"  # entries of the server's state [X]

# (v, delta^2, b2) -> the next v
SQUARES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "adagrad": lambda v, square, _: v + square,
    "adam": lambda v, square, b2: b2 * v + (1 - b2) * square,
    "yogi": lambda v, square, b2: v - (1 - b2) * square * torch.sign(v - square),
}


@dataclass(frozen=True)
class Momentum:
    """FedAvgM."""

    lr: float
    beta: float

    def begin(self, size: int) -> ServerState:
        """What the state holds at the start besides "shared", for ``size`` exchanged parameters."""
        return {MOMENT: torch.zeros(size)}

    def __call__(self, state: ServerState, mean: Tensor, uploads: Uploads) -> ServerState:
        moment = self.beta * state[MOMENT] + (mean - state[SHARED])
        return {**state, SHARED: state[SHARED] + self.lr * moment, MOMENT: moment}


@dataclass(frozen=True)
class Adaptive:
    """FedAdagrad, FedAdam or FedYogi; ``rule``: one of `SQUARES`."""

    rule: str
    lr: float
    betas: tuple[float, float]
    tau: float

    def begin(self, size: int) -> ServerState:
        """What the state holds at the start besides "shared", for ``size`` exchanged parameters."""
        return {MOMENT: torch.zeros(size), SQUARE: torch.full((size,), self.tau**2)}

    def __call__(self, state: ServerState, mean: Tensor, uploads: Uploads) -> ServerState:
        (b1, b2), delta = self.betas, mean - state[SHARED]
        moment = b1 * state[MOMENT] + (1 - b1) * delta
        square = SQUARES[self.rule](state[SQUARE], delta * delta, b2)
        shared = state[SHARED] + self.lr * moment / (square.sqrt() + self.tau)
        return {**state, SHARED: shared, MOMENT: moment, SQUARE: square}
