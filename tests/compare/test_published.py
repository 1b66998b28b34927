"""Published averages stand beside one's own where the setting is the paper's, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from pfedmma.compare import published, table, written
from pfedmma.compare.done import Done
from pfedmma.system.options import merged
from tests.support.compared import done

SETTING: dict[str, Any] = {
    "backbone": {"name": "ViT-B-16", "pretrained": "openai"},
    "data": {"shots": 16, "clients": 10},
    "federation": {"rounds": 50, "local_epochs": 2},
}


def runs(method: str, changes: Any = None, data_sets: Any = published.DATA_SETS, label: str = "") -> list[Done]:
    """One run a data set, in the paper's setting but for ``changes``."""
    tree = merged(SETTING | {"method": {"name": method}}, changes or {})
    return [done(label or method, 0, (90.0, 80.0, 70.0), name, tree=merged(tree, {"data": {"name": name}})) for name in sorted(data_sets)]


def test_they_stand_below_ours_in_the_average():
    whole = [*runs("zeroshot", {"federation": {"rounds": 1}}), *runs("pfedmma"), *runs("fedclip")]
    *single, average = table.sheets(whole)
    assert [row[:6] for row in average.rows] == [
        ["zeroshot", "90.00", "80.00", "70.00", "79.16", "82.33"],
        ["zeroshot, published", "76.36", "76.81", "81.21", "78.03", "-"],
        ["pfedmma", "90.00", "80.00", "70.00", "79.16", "82.33"],
        ["pfedmma, published", "97.17", "77.40", "81.49", "84.15", "-"],
        ["fedclip", "90.00", "80.00", "70.00", "79.16", "82.33"],  # the paper does not have it
    ]
    assert average.rows[1][6:] == ["-"] * 4 and average.notes[-1] == published.SOURCE
    assert all("published" not in row[0] for sheet in single for row in sheet.rows) and len(single) == 7
    assert "arXiv 2507.05394" in written.markdown([average])


def test_both_released_schedules_are_the_papers():
    assert published.beside(runs("pfedmma", {"federation": {"rounds": 100, "local_epochs": 1}}))


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": {"name": "ViT-B-32"}},
        {"backbone": {"pretrained": "none"}},
        {"data": {"shots": 8}},
        {"data": {"clients": 5}},
        {"data": {"protocol": "iid"}},
        {"federation": {"rounds": 10}},
        {"federation": {"participation": 0.5}},
        {"federation": {"dropout": 0.1}},
        {"federation": {"batch_size": 16}},
        {"method": {"dim": 8}},
        {"method": {"exchange": "all"}},
        {"optimizer": {"lr": 0.05}},
        {"evaluation": {"split": "val"}},
    ],
    ids=str,
)
def test_another_setting_has_none(changes: dict[str, Any]):
    assert published.beside(runs("pfedmma")) is not None
    assert published.beside(runs("pfedmma", changes)) is None


def test_all_seven_data_sets_are_wanted():
    assert published.beside(runs("pfedmma", data_sets=published.DATA_SETS - {"dtd"})) is None
    assert published.beside(runs("pfedmma", data_sets=published.DATA_SETS | {"eurosat"})) is None


def test_a_method_is_known_by_its_name_not_its_label():
    assert published.beside(runs("pfedmma", label="ours")) is not None
    assert published.beside(runs("local", label="pfedmma")) is None
