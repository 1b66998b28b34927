"""The columns of a comparison's CSV files are those that are explained."""

from __future__ import annotations

import pytest

from pfedmma.compare import against, new_clients, written
from tests.support.columns import unexplained
from tests.support.compared import ONE, done

RUNS = [*ONE, done("ours", 0, (50.0, 40.0, 60.0), "other", extra={"domain:sketch": 40.0})]
FILES = {
    "table.csv": written.table_csv(RUNS),
    "runs.csv": written.runs_csv(RUNS),
    "candidates.csv": written.candidates_csv([]),
    "differences.csv": against.csv([]),
    "new_clients.csv": new_clients.csv([]),
}


@pytest.mark.parametrize("file", FILES)
def test_every_column_is_explained(file: str) -> None:
    names = FILES[file].splitlines()[0].split(",")
    assert len(names) > 5 and unexplained(names) == set()


def test_what_is_not_explained_is_found() -> None:
    assert unexplained(["hm_percent_mean", "client_exchange_seconds_home_modelled", "seconds"]) == {"seconds"}
