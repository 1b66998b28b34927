"""Which round's accuracy a run reports, as its summary and its checkpoints say it; `pfedmma.accuracy.selection` decides."""

from __future__ import annotations

from dataclasses import dataclass

from pfedmma.system.errors import UserError
from pfedmma.system.fields import Fields

LAST, BEST_VAL, BEST_TEST = CHOICES = ("last", "best_val", "best_test")  # of evaluation.select
_CALLED = {"hm": "HM", "local": "Local"}


@dataclass(frozen=True)
class Selected:
    """The round whose accuracy a run reports, where that is not simply the last.

    ``by``: `BEST_VAL` or `BEST_TEST`; the round has the largest ``score`` on the images of ``split``: ``value`` percent.
    """

    round: int
    by: str
    score: str
    split: str
    value: float

    def __str__(self) -> str:
        optimistic = "; chosen on the images that it is tested on: optimistic" if self.split == "test" else ""
        why = f"the best {_CALLED[self.score]} on the {self.split} split, {self.value:.2f} %"
        return f"round {self.round}, which has {why} (evaluation.select={self.by}{optimistic})"

    @classmethod
    def from_fields(cls, fields: Fields) -> Selected:
        score = fields.text("score")
        if score not in _CALLED:
            raise UserError(f"{fields.where}: score must be one of {', '.join(_CALLED)}")
        return cls(fields.whole("round"), fields.text("by"), score, fields.text("split"), fields.number("value"))
