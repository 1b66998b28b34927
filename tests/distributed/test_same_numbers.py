"""Every method computes what it computed when `record_numbers` was last run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pfedmma.methods import registry
from tests.distributed import record_numbers

RECORDED = json.loads(record_numbers.FILE.read_text())
ALIKE = RECORDED["machine"] == record_numbers.machine()  # elsewhere the last bits of sums differ


def test_all_methods_are_recorded() -> None:
    assert set(RECORDED["runs"]) == {f"{name} on {ranks}" for name in registry.NAMES for ranks in (1, 2)}


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("name", registry.NAMES)
def test_a_run_has_the_recorded_numbers(name: str, ranks: int, tmp_path: Path) -> None:
    found: Any = record_numbers.numbers_of(tmp_path, name, ranks)
    recorded = RECORDED["runs"][f"{name} on {ranks}"]
    if ALIKE:
        assert json.loads(json.dumps(found)) == recorded
        return
    for row, wanted in zip(found["rounds"], recorded["rounds"], strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
        # A test set is 60 images: an accuracy may change by an image or two.
        assert row["accuracy"] == pytest.approx(wanted["accuracy"], abs=5.0)
        rest = [name for name in wanted if name not in ("loss", "accuracy")]
        assert {name: row[name] for name in rest} == {name: wanted[name] for name in rest}
