"""How long a run still takes, worked out by hand."""

from __future__ import annotations

from pfedmma.records.rows import RoundRow
from pfedmma.run.progress import RECENT, Pace
from tests.support.reported import accuracy, round_row


def took(number: int, train: float, test: float | None = None) -> RoundRow:
    """A round of ``train`` seconds, and ``test`` seconds of testing."""
    seconds = {"train": train, "evaluate": test or 0.0, "total": train + (test or 0.0)}
    return round_row(number, evaluated=None if test is None else accuracy(70.0), seconds=seconds)


def test_before_a_round_is_done_nothing_is_known() -> None:
    assert Pace(10, 5).left is None


def test_rounds_and_evaluations_that_are_left_are_counted() -> None:
    """Evaluated after rounds 4, 8 and 10. The first round, in which all is made ready, counts until there is another."""
    pace = Pace(10, 4)
    pace.add([took(1, 60.0)])
    assert (pace.left.seconds, pace.left.more, str(pace.left)) == (9 * 60.0, True, "0:09:00+")
    pace.add([took(2, 2.0), took(3, 4.0)])
    assert (pace.left.seconds, pace.left.more) == (7 * 3.0, True)  # no evaluation has been seen
    pace.add([took(4, 3.0, test=50.0)])
    assert (pace.left.seconds, pace.left.more, str(pace.left)) == (6 * 3.0 + 2 * 50.0, False, "0:01:58")
    pace.add([took(8, 3.0, test=30.0)])
    assert pace.left.seconds == 2 * 3.0 + 30.0
    pace.add([took(10, 3.0, test=30.0)])
    assert (pace.left.seconds, str(pace.left), pace.done) == (0.0, "0:00:00", 10)


def test_fine_tuning_is_no_part_of_a_round() -> None:
    """A run that goes on after its clients were fine-tuned does not expect that again."""
    pace = Pace(8, 0)
    pace.add([took(1, 1.0), round_row(2, seconds={"train": 2.0, "fine_tune": 30.0, "evaluate": 0.0, "total": 32.0})])
    assert pace.left.seconds == 6 * 2.0


def test_a_run_without_evaluations_says_no_more() -> None:
    pace = Pace(3, 0)
    pace.add([took(1, 5.0)])
    assert (pace.left.seconds, pace.left.more) == (10.0, False)


def test_the_next_rounds_are_as_the_recent_ones() -> None:
    pace = Pace(1000, 0)
    pace.add(took(number, 100.0) for number in range(1, 50))
    pace.add(took(number, 1.0) for number in range(50, 50 + RECENT))
    assert pace.left.seconds == 1000 - 49 - RECENT
