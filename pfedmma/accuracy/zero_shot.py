"""Zero-shot CLIP on a run's own protocol: what every client's accuracy is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pfedmma.accuracy.evaluator import EvaluationConfig
from pfedmma.records.rows import Accuracy


@dataclass(frozen=True)
class Reference:
    """``accuracy``: the averages; ``table``: by client [K, 4] as `pfedmma.accuracy.evaluator.Evaluator.table`.

    Both are None where nothing is evaluated, ``table`` also in a run whose checkpoints were written before it was kept.
    """

    accuracy: Accuracy | None = None
    table: Tensor | None = None

    def known(self, config: EvaluationConfig) -> bool:
        """Whether it holds all that is asked for."""
        return self.accuracy is not None and (not config.diagnostics or self.accuracy.diagnostics is not None)
