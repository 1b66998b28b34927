"""Optimizers on a stack of clients: one element-wise step equals a separate ``torch.optim`` step for each client.

Shape legend: C clients, P trained parameters of one client. Whatever is not element-wise (clipping, the step count of
Adam's bias correction) is kept per client.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.system import checks
from pfedmma.system.options import setting

OptimizerState = dict[str, Tensor]  # each [C, P]; "step" and, where rates fall, "rate" [C, 1]


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of local training; another method may bring other defaults."""

    name: str = setting("sgd", "sgd, adam (weight decay added to the gradient) or adamw (weight decay apart)")
    lr: float = setting(1e-3, "learning rate")
    momentum: float = setting(0.9, "momentum of sgd, from 0 to less than 1")
    weight_decay: float = setting(5e-4, "weight decay")
    beta1: float = setting(0.9, "decay of the mean of gradients in adam and adamw")
    beta2: float = setting(0.999, "decay of the mean of squared gradients in adam and adamw")
    eps: float = setting(1e-8, "added to the denominator in adam and adamw")
    clip: float = setting(0.0, "largest norm of one client's gradient; 0: no clipping")
    state: str = setting(
        "reset",
        "reset (every round starts with a fresh optimizer) or persist (a client keeps its own between its rounds)",
    )
    cosine_rounds: int = setting(
        0, "rounds over which learning rates fall to 0 along half a cosine, a step a round; 0: they stay as they are"
    )

    def __post_init__(self) -> None:
        checks.one_of("name", self.name, ("sgd", "adam", "adamw"))
        checks.one_of("state", self.state, ("reset", "persist"))
        for name in ("lr", "weight_decay", "clip", "cosine_rounds"):
            checks.at_least(name, getattr(self, name), 0)
        for name in ("momentum", "beta1", "beta2"):
            checks.below_one(name, getattr(self, name))
        checks.positive("eps", self.eps)


def initial_state(config: OptimizerConfig, clients: int, size: int, device: torch.device) -> OptimizerState:
    """Zero state for ``clients`` clients of ``size`` parameters."""
    names = ("momentum",) if config.name == "sgd" else ("mean", "square")
    state = {name: torch.zeros(clients, size, device=device) for name in names}
    return state | {"step": torch.zeros(clients, 1, device=device)}


def rate_factor(config: OptimizerConfig, round_: int) -> float:
    """By what learning rates are multiplied in a round, from 1 on; clients that train when all rounds are over (0) have full ones."""
    if not (config.cosine_rounds and round_):
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (round_ - 1) / config.cosine_rounds)))


def in_round(config: OptimizerConfig, state: OptimizerState, round_: int) -> OptimizerState:
    """The same state, with the round's factor of learning rates in "rate" [C, 1] where it may not be 1."""
    return state | {"rate": torch.full_like(state["step"], rate_factor(config, round_))} if config.cosine_rounds else state


def part(state: OptimizerState, columns: slice) -> OptimizerState:
    """The state of the parameters in ``columns``, as views."""
    return {name: tensor if name in ("step", "rate") else tensor[:, columns] for name, tensor in state.items()}


@torch.no_grad()
def step(config: OptimizerConfig, params: Tensor, grads: Tensor, state: OptimizerState, rates: Tensor | None = None) -> None:
    """One step in place; ``params``, ``grads`` [C,P] and every state tensor may be slices of a larger stack.

    ``rates`` [P]: a learning rate for each parameter in place of ``config.lr``.
    """
    rates = torch.full((), config.lr, device=params.device) if rates is None else rates
    if "rate" in state:
        rates = rates * state["rate"]
    if config.clip > 0:
        norms = grads.norm(dim=1, keepdim=True)
        grads = grads * (config.clip / (norms + 1e-6)).clamp(max=1.0)
    state["step"] += 1
    if config.name == "sgd":
        grads = grads.add(params, alpha=config.weight_decay)
        state["momentum"].mul_(config.momentum).add_(grads)
        params.addcmul_(state["momentum"], rates, value=-1.0)
        return
    if config.name == "adamw":
        params.mul_(1.0 - rates * config.weight_decay)
    else:
        grads = grads.add(params, alpha=config.weight_decay)
    state["mean"].lerp_(grads, 1.0 - config.beta1)
    state["square"].mul_(config.beta2).addcmul_(grads, grads, value=1.0 - config.beta2)
    # In fp64: 1 - 0.999 in fp32 is off by 1e-5, and every weight with it.
    first, second = ((1.0 - beta ** state["step"].double()).float() for beta in (config.beta1, config.beta2))
    params.sub_(rates / first * state["mean"] / ((state["square"] / second).sqrt_().add_(config.eps)))


class LossScale:
    """Loss scaling for fp16, one factor a client: a client whose gradient overflows skips the step and halves its factor."""

    def __init__(self, clients: int, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self.factor = torch.full((clients,), 4096.0, device=device)

    def scaled(self, losses: Tensor) -> Tensor:
        return losses * self.factor[: len(losses)] if self.enabled else losses

    def scaled_rows(self, added: Tensor) -> Tensor:
        """What is added to the gradients of scaled losses [k, n], scaled like them."""
        return added * self.factor[: len(added), None] if self.enabled else added

    def guarded_step(
        self, config: OptimizerConfig, params: Tensor, grads: Tensor, state: OptimizerState, rates: Tensor | None = None
    ) -> None:
        """An optimizer step on the unscaled gradients; without scaling, just the step."""
        if not self.enabled:
            return step(config, params, grads, state, rates)
        k = len(params)
        grads = grads / self.factor[:k, None]
        good = torch.isfinite(grads).all(dim=1, keepdim=True)
        before = {"": params.clone()} | {name: tensor.clone() for name, tensor in state.items()}
        step(config, params, torch.where(good, grads, 0.0), state, rates)
        for name, tensor in ({"": params} | state).items():
            tensor.copy_(torch.where(good, tensor, before[name]))
        self.factor[:k] = torch.where(good[:, 0], self.factor[:k], self.factor[:k] / 2.0)
