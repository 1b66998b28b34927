"""Which round's accuracy a run reports: ``evaluation.select``.

``last``: that of the last round. ``best_val``: that of the round with the best HM on the validation split, which is then tested in the same
rounds. ``best_test``: that of the round with the best Local on the test split itself, as in the released code. The test images have then
chosen the round, and its Local is the largest of several tries: optimistic, and comparable with numbers of the same kind alone.

Shape legend: K clients.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pfedmma.records.rows import Accuracy
from pfedmma.records.selected import BEST_TEST, BEST_VAL, Selected

_CRITERIA = {BEST_VAL: ("hm", "val"), BEST_TEST: ("local", "test")}  # the score that is largest, and on which split


@dataclass(frozen=True)
class Best:
    """The best round so far, and its test accuracies by client ``table`` [K, 4]."""

    selected: Selected
    table: Tensor


def better(best: Best | None, by: str, round_: int, judged: Accuracy, table: Tensor) -> Best:
    """The better of ``best`` and a later round, of equal ones the later, as in the released code.

    Args:
        by: `BEST_VAL` or `BEST_TEST`. judged: accuracies of the round on the split that decides. table: [K, 4], on the test split.
    """
    score, split = _CRITERIA[by]
    value = judged.score(score) or 0.0
    if best is not None and value < best.selected.value:
        return best
    return Best(Selected(round_, by, score, split, value), table)
