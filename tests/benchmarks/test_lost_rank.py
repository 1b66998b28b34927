"""The check of lost ranks: what it asks for, and a run whose last rank is killed."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from tests.benchmarks.programs import LIMIT, PATIENCE, ROOT, one_sentence, report_of, run

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture
def lost_rank(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("lost_rank")


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_goes_on() -> None:
    """Under gloo, which notices at once."""
    options = ("--ways", "kill", "--device", "cpu", "--timeout", str(PATIENCE / 2), "--patience", str(PATIENCE / 3))
    report = report_of(run("lost_rank.py", *options))
    (loss,) = report["losses"]
    assert (loss["way"], loss["problem"], len(loss["said"])) == ("kill", "", 1)
    assert loss["said"][0].startswith("error: rank 0 waited in ") and "for rank 1 (" in loss["said"][0]
    assert 0 < loss["seconds"] < PATIENCE / 2 and report["resumed"] == "every round stands once"
    assert (report["world_size"], report["backend"], report["timeout_s"]) == (2, "gloo", PATIENCE / 2)


@pytest.mark.parametrize(
    ("statuses", "said", "problem"),
    [
        ([2, 2], ["for rank 2 (", "for rank 2 ("], ""),
        ([2, None], ["for rank 2 (", ""], "rank 1 was still there after 30 s"),
        ([2, 0], ["for rank 2 (", ""], "rank 1 ended with status 0"),
        ([2, -6], ["for rank 2 (", ""], "rank 1 ended with status -6"),
        ([2, 2], ["for rank 1 (", "for rank 2 ("], "rank 0 did not name rank 2"),
    ],
)
def test_what_is_wrong(lost_rank: ModuleType, statuses: list[int | None], said: list[str], problem: str) -> None:
    assert lost_rank.problem_of(statuses, said, 2, 20.0) == problem


def test_bad_options_end_it_with_one_line() -> None:
    one_sentence(run("lost_rank.py", "--ways", "sleep"), "--ways: 'sleep' is not known")
