"""How a server works, from the settings ``server`` and ``privacy``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from pfedmma.server.optimizers import SQUARES, Adaptive, Momentum
from pfedmma.server.privacy import CLIENTS, Asked, Bounded, PrivacyConfig, onward
from pfedmma.server.robust import Gathered, NormClipped, median, refuse_large, trimmed_mean
from pfedmma.server.rules import Aggregate, ServerRules, Update, replace_by_mean, weighted_mean
from pfedmma.server.secure_sum import SecureSum, key_bytes
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import POOL
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import setting

AVERAGE, MOMENTUM = "average", "momentum"
NO, MEDIAN, TRIMMED, NORM = ROBUST = ("no", "median", "trimmed_mean", "norm_clip")

# Published where the papers have a default: betas and tau (arXiv 2003.00295, of whose Adagrad b1 is 0). They tune the rate on a grid.
RATES: Mapping[str, float] = {MOMENTUM: 1.0, "adagrad": 0.01, "adam": 0.01, "yogi": 0.01}
BETAS: Mapping[str, tuple[float, ...]] = {MOMENTUM: (0.9,), "adagrad": (0.0, 0.0), "adam": (0.9, 0.99), "yogi": (0.9, 0.99)}


@dataclass(frozen=True)
class ServerConfig:
    """What the server makes of the uploads."""

    rule: str = setting(AVERAGE, "what becomes of the mean of the uploads: average (it is taken as it is), momentum, adagrad, adam or yogi")
    lr: float = setting(0.0, "learning rate of that rule; 0: 1 for momentum, 0.01 for adagrad, adam and yogi")
    betas: tuple[float, ...] = setting(
        (), "decays of that rule's moments: b1 for momentum and adagrad, [b1, b2] for adam and yogi; empty: 0.9; 0; [0.9, 0.99]"
    )
    tau: float = setting(1e-3, "added to the denominator in adagrad, adam and yogi")
    robust: str = setting(NO, "in place of the weighted mean: median or trimmed_mean of the gathered uploads, or norm_clip; no: the mean")
    trim: float = setting(0.1, "share of the smallest and of the largest values that trimmed_mean leaves out, below 0.5")
    norm: float = setting(0.0, "longest way of an upload under norm_clip; 0: the median of the round's")

    def __post_init__(self) -> None:
        checks.one_of("rule", self.rule, (AVERAGE, MOMENTUM, *SQUARES))
        checks.one_of("robust", self.robust, ROBUST)
        for name in ("lr", "norm"):
            checks.at_least(name, getattr(self, name), 0)
        checks.positive("tau", self.tau)
        for beta in self.betas:
            checks.below_one("betas", beta)
        wanted = {MOMENTUM: 1, "adagrad": 1}.get(self.rule, 2)
        if self.betas and self.rule != AVERAGE and len(self.betas) != wanted:
            raise UserError(f"betas: {self.rule} has {wanted}, not {len(self.betas)}; give as many, or leave them out")
        if not 0.0 <= self.trim < 0.5:
            raise UserError(f"trim: must be from 0 to less than 0.5, not {self.trim:g}")

    def optimizer(self) -> Momentum | Adaptive | None:
        """What steps along the mean; None where it is taken as it is."""
        if self.rule == AVERAGE:
            return None
        lr, betas = self.lr or RATES[self.rule], self.betas or BETAS[self.rule]
        return Momentum(lr, betas[0]) if self.rule == MOMENTUM else Adaptive(self.rule, lr, (betas[0], betas[-1]), self.tau)

    def aggregate(self) -> Aggregate:
        """How uploads are summed."""
        known: dict[str, Aggregate] = {
            NO: weighted_mean,
            MEDIAN: Gathered(median),
            TRIMMED: Gathered(partial(trimmed_mean, share=self.trim)),
            NORM: NormClipped(self.norm),
        }
        return known[self.robust]


def bounded_from(privacy: PrivacyConfig, asked: Asked, multiplier: float, seed: int) -> Bounded | None:
    """Clipping and noise as the settings ask for them; None where they ask for none. ``multiplier``: of the noise."""
    return Bounded(privacy.clip, asked, multiplier, privacy.noise, privacy.draws(seed)) if privacy.clip else None


def rules_from(server: ServerConfig, secure_sum: bool, bounded: Bounded | None, plain: ServerRules, size: int) -> ServerRules:
    """The rules that the settings ask for, for ``size`` exchanged parameters; ``plain``: without any of it."""
    optimizer = server.optimizer()
    update: Update = optimizer or replace_by_mean
    rules = replace(plain, aggregate=server.aggregate(), update=update, begin=optimizer.begin(size) if optimizer else {})
    if bounded is None:
        return rules
    noisy = bounded.multiplier > 0
    return replace(
        rules,
        transforms=(bounded.ways, bounded.shares) if noisy and bounded.noise == CLIENTS else (bounded.ways,),
        weights=bounded.weights,
        noise=bounded.rest if noisy else None,
        aggregate=SecureSum(bounded) if secure_sum else weighted_mean,
        update=onward(update),
        keys=key_bytes if secure_sum else None,
        in_any_round=noisy,  # whether anybody took part is a secret, too
    )


def refuse(server: ServerConfig, privacy: PrivacyConfig, plain: ServerRules, layout: Layout, asked: Asked) -> None:
    """Raise a `UserError` where settings do not go together; says which to change."""
    if server.robust in (MEDIAN, TRIMMED):
        refuse_large(asked.most, layout.exchanged_size)
    if not privacy.clip:
        return
    if POOL in layout.columns:
        raise UserError("privacy.clip: this method's server keeps what each client sends, so a sum protects nobody; use another method")
    if server.robust != NO:
        raise UserError(f"server.robust: how far one client moves {server.robust} is not bounded by privacy.clip; use server.robust=no")
    if plain.wire != "fp32":
        raise UserError(f"distributed.wire: rounding to {plain.wire} comes after privacy.clip and would break its bound; use fp32")
