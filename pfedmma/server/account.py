"""What a run has told of one client after each round, in epsilon, to whom."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pfedmma.records.privacy import RoundPrivacy
from pfedmma.server import accountant
from pfedmma.server.privacy import CLIENTS


@dataclass
class Account:
    """What is told round by round. ``taken`` and ``others``: of the ``counted`` rounds so far, in how many a client took part, and how many
    participants these had together; they follow from the cohorts, so a resumed run counts them again.

    ``sampling``: the probability with which each client takes part, 1 where that is not drawn for each client apart.

    ``cohort``: round -> its participants, whom the server knows. ``noise``: who adds it. ``secure_sum``: the server sees sums alone.
    """

    multiplier: float
    delta: float
    sampling: float
    noise: str
    secure_sum: bool
    cohort: Callable[[int], Sequence[int]]
    counted: int = 0
    taken: Counter[int] = field(default_factory=Counter)
    others: Counter[int] = field(default_factory=Counter)

    def after(self, round_: int) -> RoundPrivacy:
        """What rounds 1 to ``round_`` have told, of the client of which they told most; asked for in the order of rounds."""
        for newer in range(self.counted + 1, round_ + 1):
            cohort = self.cohort(newer)
            self.taken.update(cohort)
            self.others.update(dict.fromkeys(cohort, len(cohort)))
        self.counted = round_
        known = accountant.epsilon(self.multiplier, max(self.taken.values(), default=0), self.delta)
        server = math.inf
        if self.noise == CLIENTS:
            server = known if self.secure_sum else self.single(max(self.others.values(), default=0))
        return RoundPrivacy(
            epsilon_outsider=accountant.epsilon(self.multiplier, round_, self.delta, self.sampling),
            epsilon_known_cohorts=known,
            epsilon_server=server,
            delta=self.delta,
            noise_multiplier=self.multiplier,
        )

    def single(self, participants: int) -> float:
        """Epsilon to who sees single uploads, each with its share of the noise alone, of z / sqrt(participants of its round).

        ``participants``: of all rounds in which the client took part, added up.
        """
        return accountant.gaussian(math.sqrt(participants) / self.multiplier, self.delta) if participants else 0.0
