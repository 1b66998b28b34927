"""Averages over clients, by hand."""

from __future__ import annotations

import pytest
import torch

from pfedmma.accuracy.metrics import COLUMNS, summarise
from pfedmma.records.rows import HEADLINE, TITLES, Accuracy
from pfedmma.system.fields import Fields


def test_what_follows_from_local_base_and_novel() -> None:
    """HM(60, 30, 20) = 3 / (1/60 + 2/60 + 3/60) = 30; HM(30, 20) = 24; CM = (60 + 24) / 2 = 42."""
    nan = float("nan")
    table = torch.tensor([[50.0, 20.0, 10.0, nan], [70.0, 40.0, 30.0, nan]], dtype=torch.float64)
    scores = summarise(table).scores
    assert [scores[name] for name in ("local", "base", "novel")] == [60.0, 30.0, 20.0]
    assert [scores[name] for name in ("hm", "hm_base_novel", "cm")] == pytest.approx([30.0, 24.0, 42.0])


def test_without_novel_classes_there_is_no_cm() -> None:
    table = torch.full((2, len(COLUMNS)), 50.0, dtype=torch.float64)
    table[:, 2] = float("nan")
    scores = summarise(table).scores
    assert (scores["hm"], scores["hm_base_novel"], scores["cm"]) == (50.0, None, None)


def test_cm_stands_beside_hm() -> None:
    assert HEADLINE == ("local", "base", "novel", "hm", "cm") and TITLES["cm"] == "CM"
    written = summarise(torch.full((1, len(COLUMNS)), 50.0, dtype=torch.float64)).to_json()
    assert written["cm"] == 50.0
    older = {name: value for name, value in written.items() if name != "cm"}
    assert Accuracy.from_fields(Fields(older, "an older row")).score("cm") == 50.0
