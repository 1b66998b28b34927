"""Client-level differential privacy of what travels (McMahan et al., arXiv 1710.06963), as values of the server.

The way of a participant, what it sends minus what it was sent, over all exchanged tensors as one vector, is cut to a norm of at most C.
The server takes x + (sum of ways + z C N(0, I)) / m. All weigh the same, and m is a public number: how many are asked, or under Poisson
sampling how many are to be expected. So one client more or less moves the sum by at most C, whatever it holds.

Shape legend: C participants that train on this rank, X exchanged parameters of one client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pfedmma.server.draws import Draws
from pfedmma.server.rules import SHARED, ServerState, Update, Uploads
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import setting

NOISE = SERVERS, CLIENTS = ("server", "clients")


@dataclass(frozen=True)
class PrivacyConfig:
    """What one client's part in a round may tell."""

    clip: float = setting(0.0, "largest norm of what a participant changes in the exchanged tensors; 0: no clipping, no noise, no masks")
    epsilon: float = setting(
        0.0,
        "epsilon of the whole run to an outsider, who does not know who takes part: sets the noise; 0: privacy.noise_multiplier does",
    )
    noise_multiplier: float = setting(0.0, "standard deviation of the noise in the sum of the uploads, in units of privacy.clip")
    delta: float = setting(1e-5, "delta at which epsilon is told")
    noise: str = setting("server", "who adds the noise: server (to the sum), or clients (a share each, before they send)")
    secure_sum: bool = setting(False, "the server sees the sum of the uploads alone: masked whole numbers travel in place of them")
    key_file: str = setting(
        "", "file of at least 32 random bytes from which noise and masks are drawn; empty: the seed, which protects nothing"
    )

    def __post_init__(self) -> None:
        for name in ("clip", "epsilon", "noise_multiplier"):
            checks.at_least(name, getattr(self, name), 0)
        checks.positive("delta", self.delta)
        checks.below_one("delta", self.delta)
        checks.one_of("noise", self.noise, NOISE)
        if self.epsilon and self.noise_multiplier:
            raise UserError("epsilon: privacy.noise_multiplier sets the noise, too; give one of the two")
        if self.clip == 0.0:
            needing = [name for name in ("epsilon", "noise_multiplier", "secure_sum") if getattr(self, name)]
            if needing:
                raise UserError(f"{needing[0]}: needs a bound on what one client sends; set privacy.clip, for example to 1")

    @property
    def noisy(self) -> bool:
        """Whether there is noise."""
        return self.epsilon > 0 or self.noise_multiplier > 0

    def draws(self, seed: int) -> Draws:
        """What noise and masks are drawn from."""
        return Draws.from_file(self.key_file) if self.key_file else Draws.from_seed(seed)


class Asked(NamedTuple):
    """Who is asked to take part in a round, as everybody may know: ``expected`` how many (the m above), at ``most`` how many."""

    expected: float
    most: int


@dataclass(frozen=True)
class Bounded:
    """Ways of a norm of at most ``clip``, each of weight 1 / m, and noise of standard deviation ``multiplier`` x ``clip`` in their sum.

    ``noise``: who adds it, the server or the clients.
    """

    clip: float
    asked: Asked
    multiplier: float
    noise: str
    draws: Draws

    def ways(self, rows: Tensor, uploads: Uploads, state: ServerState) -> Tensor:
        """A transform: what the hosted participants changed [C, X], cut to norm C."""
        ways = rows - state[SHARED]
        lengths = ways.norm(dim=1, keepdim=True)
        return ways * (self.clip / lengths.clamp(min=torch.finfo(ways.dtype).tiny)).clamp(max=1.0)

    def shares(self, rows: Tensor, uploads: Uploads, state: ServerState) -> Tensor:
        """A transform: each participant adds its share of the noise, so that the sum has all of it."""
        deviation = self.multiplier * self.clip / math.sqrt(max(1, len(uploads.clients)))
        drawn = [deviation * self.draws.normal(rows.shape[1], "noise", uploads.round, client) for client in uploads.hosted]
        return rows + torch.stack(drawn).to(rows) if drawn else rows

    def weights(self, uploads: Uploads, rule: str) -> Sequence[float]:
        """1 / m for each."""
        return [1.0 / self.asked.expected] * len(uploads.hosted)

    def rest(self, uploads: Uploads, size: int) -> Tensor:
        """The noise that the server adds to the mean [size]: all of it, unless there are clients who add shares."""
        if self.noise == CLIENTS and uploads.clients:
            return torch.zeros(size, dtype=torch.float64)
        deviation = self.multiplier * self.clip / self.asked.expected
        return deviation * self.draws.normal(size, "noise", uploads.round)


def onward(update: Update) -> Update:
    """The ``update`` for a server that sums ways: it is given x + the mean of the ways."""

    def from_ways(state: ServerState, mean: Tensor, uploads: Uploads) -> ServerState:
        return update(state, state[SHARED] + mean, uploads)

    return from_ways
