"""What a run has told of its clients so far, as it stands in ``metrics.jsonl`` and ``summary.json``, if it adds noise."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from pfedmma.system.fields import Fields, finite


@dataclass(frozen=True)
class RoundPrivacy:
    """Epsilon at ``delta`` after the rounds so far, of the client of whom most was told; infinite (null in a file) where nothing bounds it.

    ``epsilon_outsider``: to who sees what the server sends out. ``epsilon_known_cohorts``: to who knows besides who took part.
    ``epsilon_server``: to the server itself, which may see more than the sums. ``noise_multiplier``: standard deviation of the noise in the
    sum, in units of the clipping norm.
    """

    epsilon_outsider: float
    epsilon_known_cohorts: float
    epsilon_server: float
    delta: float
    noise_multiplier: float

    def to_json(self) -> dict[str, float | None]:
        return {name: finite(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_fields(cls, fields: Fields) -> RoundPrivacy:
        def read(name: str) -> float:
            value = fields.score(name)
            return math.inf if value is None else value

        return cls(**{item.name: read(item.name) for item in dataclasses.fields(cls)})
