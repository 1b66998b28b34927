"""The attacks of the privacy benchmark: their arithmetic by hand; what works today goes on working, and what fails goes on failing.

Measured with ten draws of 30 victims and 100 simulated clients: class AUC .786 to .836 under a shared start, .459 to .514 under an own one.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pfedmma.data.partition.camera import _hue
from tests.benchmarks.programs import LIMIT, RESULTS, ROOT, one_sentence, report_of, run

pytestmark = pytest.mark.timeout(LIMIT)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A file of ``benchmarks/`` by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.slow
def test_a_shared_start_tells_the_classes_and_an_own_one_hides_them(tmp_path: Path) -> None:
    """With ``private_init=own`` in place of ``shared``, or the other way round, a bound is broken."""
    done = run("privacy.py", "--quick", "--check", "--json", str(tmp_path / "report.json"))
    report = report_of(done)
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    shared, own = report["uploads"]
    assert (shared["upload"], own["upload"], shared["numbers"], own["numbers"]) == ("shared", "own", 3168, 3168)
    assert shared["class_auc"]["value"] > 0.75 and shared["by_losses"]["class_auc"]["value"] > 0.62
    assert own["class_auc"]["value"] < 0.56 and own["by_losses"]["class_auc"]["value"] < 0.58
    assert own["by_losses_seed_known"]["class_auc"]["value"] > 0.62, "who knows the seed knows the start"
    assert shared["classes_named"]["low"] > 0.3 > own["classes_named"]["high"]
    assert shared["membership"]["other classes"]["value"] > 0.6 > own["membership"]["other classes"]["value"]
    assert shared["means"]["2"]["value"] > 0.65 > own["means"]["2"]["value"]
    assert min(row["linked"]["value"] for row in report["uploads"]) > 0.9, "a private start hides nobody from round to round"
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in shared["membership"].values())


@pytest.mark.parametrize(("shared", "own", "hidden", "words"), [
    (0.81, 0.50, 0.55, []),
    (0.74, 0.50, 0.55, ["under a shared start class AUC is 0.740, not above 0.75"]),
    (0.81, 0.57, 0.55, ["under an own start class AUC is 0.570, not below 0.56"]),
    (0.81, 0.50, 0.66, ["without a basis is 0.660, not below 0.65"]),
])  # fmt: skip
def test_a_broken_bound_is_said(part: Callable[[str], Any], shared: float, own: float, hidden: float, words: list[str]) -> None:
    rows = [
        {"upload": "shared", "class_auc": {"value": shared}},
        {"upload": "own", "class_auc": {"value": own}, "no_basis": {"class_auc": {"value": hidden}}},
    ]
    said = part("privacy").broken(rows)
    assert len(said) == len(words) and all(word in sentence for word, sentence in zip(words, said, strict=True))


def test_scores_by_hand(part: Callable[[str], Any]) -> None:
    attacks = part("privacy_attacks")
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    truth = torch.tensor([[True, True, False, False], [True, False, False, True]])
    # In the first row 3 is above both false ones and 1 above one of them; in the second all are level.
    assert attacks.auc(scores, truth).tolist() == [0.75, 0.5]
    assert attacks.named(scores[:1], truth[:1]).tolist() == [0.5]
    assert attacks.auc(scores[:1], torch.ones(1, 4, dtype=torch.bool)).isnan().all()
    figure = attacks.mean_of(torch.tensor([0.0, 1.0] * 50))
    assert figure["value"] == 0.5 and 0.38 < figure["low"] < 0.42 and 0.58 < figure["high"] < 0.62, "half +- 1.96 x .05"
    assert attacks.of_cohorts(torch.tensor([0.0, 1.0]), apart=4)["high"] == pytest.approx(0.5 + 1.96 * math.sqrt(0.5) / 2)


def test_ridge_finds_what_is_there_and_nothing_else(part: Callable[[str], Any]) -> None:
    attacks, generator = part("privacy_attacks"), torch.Generator().manual_seed(0)
    seen = torch.randn(80, 30, generator=generator)
    true, strange = seen @ torch.randn(30, 3, generator=generator) + 5.0, torch.randn(80, 3, generator=generator)
    ridge = attacks.Ridge(seen[:60], seen[60:])
    assert torch.allclose(ridge(true[:60], attacks.closeness), true[60:].double(), atol=0.02)
    assert float(ridge(strange[:60], attacks.closeness).std()) < 0.5 * float(strange.std()), "it chooses to say little"


def test_angles_correlate_wherever_they_begin(part: Callable[[str], Any]) -> None:
    attacks, angles = part("privacy_attacks"), torch.tensor([0.1, 0.9, 2.0, 3.0, 3.3])
    vectors = [torch.stack([(sign * angles + turn).cos(), (sign * angles + turn).sin()], dim=1) for sign, turn in ((1, 0), (1, 3), (-1, 0))]
    assert attacks.circular_correlation(vectors[0], 7 * vectors[1]) == pytest.approx(1.0, abs=1e-6)
    assert attacks.circular_correlation(vectors[0], vectors[2]) == pytest.approx(-1.0, abs=1e-6)
    assert attacks.correlation(angles, -2 * angles) == pytest.approx(-1.0, abs=1e-6)


def test_the_turn_of_a_camera_is_read_from_its_colours(part: Callable[[str], Any]) -> None:
    # 0.75 of the way from -90 to 90 degrees is a turn by 45; half of the colour that may be lost is a quarter.
    turn = part("privacy_held").turn_of(_hue(0.75, 0.5, 0.5))
    assert turn.tolist() == pytest.approx([0.75 * math.cos(math.pi / 4), 0.75 * math.sin(math.pi / 4)], abs=1e-6)


def test_what_has_no_basis_stays_when_private_tensors_are_renumbered(part: Callable[[str], Any]) -> None:
    attacks, generator = part("privacy_attacks"), torch.Generator().manual_seed(0)
    change, start, order = torch.randn(2, 4, 4, generator=generator), torch.eye(4), torch.tensor([2, 0, 3, 1])
    one, other = (attacks.without_basis({"s": c}, {"s": start}) for c in (change, change[:, order][:, :, order]))
    assert torch.allclose(one, other, atol=1e-5) and one.shape == (2, 1 + 1 + 4)


def test_every_client_is_dealt_to_one_cohort_before_any_to_a_second(part: Callable[[str], Any]) -> None:
    cohorts = part("privacy_attacks").cohorts_of(7, 3, 5, torch.Generator().manual_seed(0))
    assert cohorts.shape == (5, 3)
    assert all(len(set(cohorts[pair : pair + 2].flatten().tolist())) == 6 for pair in (0, 2)), "6 of the 7 each time"


def test_updates_are_found_again_by_direction(part: Callable[[str], Any]) -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert part("privacy_attacks").found_again(rows, torch.tensor([[9.0, 1.0], [1.0, 1.1], [0.0, 1.0]])).tolist() == [1.0, 0.0, 0.0]


def test_the_page_shows_the_kept_result() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    report = json.loads((RESULTS / "privacy-2cpu.json").read_text(encoding="utf-8"))
    assert f"{report['victims']} victims and {report['simulated']} simulated clients" in page
    for row in report["uploads"]:
        basis_free = [row["no_basis"]["class_auc"]] if row.get("no_basis") else []  # of pFedMMA's S alone
        for some in ([row["class_auc"], *row["membership"].values()], [row["classes_named"], *basis_free]):
            cells = " | ".join("{value:.3f} ({low:.2f} to {high:.2f})".format(**figure) for figure in some)
            assert cells.replace("0.", ".") in page


@pytest.mark.parametrize(("options", "words"), [
    (("--uploads", "S"), "--uploads: there is no 'S'"),
    (("--victims", "2"), "--victims: 2 is too small"),
    (("data.camera_kind=lens",), "data.camera_kind: 'lens'"),
])  # fmt: skip
def test_bad_options_end_it_with_one_line(options: tuple[str, ...], words: str) -> None:
    one_sentence(run("privacy.py", *options), words)
