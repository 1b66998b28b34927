"""Leave one domain out: the mean and the worst unseen domain, by hand; and the compare files that leave each out in turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfedmma.compare import grid, table
from pfedmma.compare.done import Done
from pfedmma.compare.unseen import by_held_out, unseen
from tests.support.compared import done

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def left_out(method: str, domain: str, accuracy: float, seed: int = 0, shots: int = 4) -> Done:
    """A run that held out ``domain`` and reached ``accuracy`` there."""
    data = {"protocol": "domains", "domains": ["flat", "night", "sketch"], "held_out_domain": domain, "shots": shots}
    return done(method, seed, (80.0, 70.0, None), dataset=domain, tree={"data": data}, extra={"unseen": accuracy})


RUNS = [
    left_out("ours", "flat", 60.0),
    left_out("ours", "flat", 64.0, seed=1),
    left_out("ours", "night", 41.0),
    left_out("ours", "night", 43.0, seed=1),
    left_out("ours", "sketch", 50.0),
    left_out("ours", "sketch", 52.0, seed=1),
    left_out("theirs", "flat", 70.0),
    left_out("theirs", "night", 30.0),
]


def test_mean_and_worst_unseen_domain() -> None:
    ours, theirs = unseen(RUNS)
    assert ours.by_domain == {"flat": 62.0, "night": 42.0, "sketch": 51.0}
    assert (ours.mean, ours.worst) == (pytest.approx(155.0 / 3), 42.0)
    # Without one of the domains neither is that of the others.
    assert theirs.by_domain == {"flat": 70.0, "night": 30.0, "sketch": None} and theirs.mean is theirs.worst is None


def test_only_runs_that_hold_out_different_domains_of_the_same_data_are_put_together() -> None:
    assert by_held_out(RUNS) == [RUNS]
    other = [left_out("ours", "flat", 60.0, shots=8), left_out("ours", "night", 50.0, shots=8)]
    assert by_held_out([*RUNS, *other]) == [RUNS, other]
    assert by_held_out(RUNS[:2]) == by_held_out([done("ours", 0, (80.0, 70.0, 60.0))]) == []


def test_the_table_has_a_column_for_each_domain() -> None:
    sheet = table.sheets(RUNS)[-1]
    assert sheet.title == "Unseen domain, left out in turn: shapes, tiny, domains, 2 seeds"
    assert sheet.head == ("method", "flat", "night", "sketch", "mean", "worst")
    assert sheet.rows == [["ours", "62.00", "42.00", "51.00", "51.67", "42.00"], ["theirs", "70.00", "30.00", "-", "-", "-"]]
    assert not any(other.title.startswith("Unseen") for other in table.sheets([done("ours", 0, (80.0, 70.0, 60.0))]))


@pytest.mark.parametrize(
    ("name", "domains"),
    [
        ("leave_one_domain_out", ["flat", "sketch", "night", "blurry"]),
        ("leave_one_domain_out_pacs", ["art_painting", "cartoon", "photo", "sketch"]),
    ],
)
def test_the_compare_files_leave_out_each_domain_in_turn(name: str, domains: list[str]) -> None:
    plans = grid.read(CONFIGS / "compare" / f"{name}.yaml", ["data.root=DATA"])
    for method in {plan.method for plan in plans}:
        for seed in (0, 1, 2):
            own = [plan.config.data for plan in plans if plan.method == method and plan.config.seed == seed]
            assert [data.held_out_domain for data in own] == domains
            assert all(data.protocol == "domains" and data.clients == 6 for data in own), "two clients for each of three domains"
