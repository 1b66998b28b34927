"""The rows of a comparison, from runs with made-up numbers: averages and spread, over seeds and over settings."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest

from pfedmma.compare import published, table
from pfedmma.compare.differences import differences
from pfedmma.compare.done import settings_of
from tests.support.compared import DOWN, ONE, TRAINED, UP, done, hm

# Averages.


def test_mean_and_sample_deviation_over_seeds():
    ours, theirs = table.rows(ONE)
    assert (ours.method, theirs.method, ours.seeds) == ("ours", "theirs", 3)
    assert ours.mean["local"] == pytest.approx(83.0)
    assert ours.std["local"] == pytest.approx(math.sqrt((3.0**2 + 1.0**2 + 4.0**2) / 2))  # over n - 1
    each = [hm(80.0, 70.0, 60.0), hm(82.0, 69.0, 64.0), hm(87.0, 73.0, 59.0)]
    assert ours.mean["hm"] == pytest.approx(sum(each) / 3)  # of each run's own
    assert ours.mean["hm"] != pytest.approx(hm(83.0, 212.0 / 3, 61.0), abs=1e-3)
    assert ours.std["hm"] == pytest.approx(statistics.stdev(each))
    assert theirs.mean["novel"] == pytest.approx(186.5 / 3)


def test_what_it_costs():
    (row,) = table.rows(ONE[:1])
    assert (row.up, row.down, row.trained) == (UP, DOWN, TRAINED)
    assert row.seconds == pytest.approx(2.75)  # the median of train + wait + exchange, without evaluation
    runs = [done("ours", 0, None, seconds=(1.0,)), done("ours", 1, None, seconds=(2.0, 2.0, 9.0))]
    assert table.rows(runs)[0].seconds == pytest.approx(2.25)
    assert table.rows([done("zeroshot", 0, (1.0, 1.0, 1.0), trained=0)])[0].seconds is None
    assert done("ours", 0, None, seconds=()).seconds is None
    older = done("ours", 0, None, seconds=(1.0,))
    older.rounds[0].seconds.pop("wait")
    assert older.seconds == 1.5


# Over several settings.


def test_over_settings_scores_are_means_of_each_settings_own():
    """By hand: HM(60, 30, 20) = 3 / (1/60 + 2/60 + 3/60) = 30, HM(30, 20) = 24, CM = (60 + 24) / 2 = 42; and 40, 40, 40 of the other."""
    runs = [
        done("ours", 0, (60.0, 30.0, 20.0), "shapes"),
        done("ours", 0, (40.0, 40.0, 40.0), "cifar10"),
        done("ours", 1, (60.0, 30.0, 20.0), "shapes"),
        done("ours", 1, (80.0, 80.0, 80.0), "cifar10"),
    ]
    (row,) = table.rows(runs)
    assert row.mean["hm"] == pytest.approx((35.0 + 55.0) / 2) and row.std["hm"] == pytest.approx(math.sqrt(200.0))
    assert row.mean["hm_base_novel"] == pytest.approx((32.0 + 52.0) / 2)
    assert row.mean["cm"] == pytest.approx((41.0 + 61.0) / 2)
    assert [row.mean[name] for name in ("local", "base", "novel")] == [60.0, 45.0, 40.0]
    of_means = (hm(50.0, 35.0, 30.0) + hm(70.0, 55.0, 50.0)) / 2
    assert of_means > row.mean["hm"] + 1  # another number, and a higher one
    names = [part.title for part in table.parts(runs)]
    assert [name.split(", tiny")[0] for name in names] == ["shapes, 16 shots", "cifar10, 16 shots", "average over 2 settings, 16 shots"]
    assert [len(part.runs) for part in table.parts(runs)] == [2, 2, 4]


@pytest.mark.parametrize("method", list(published.AVERAGES))
def test_published_averages_are_means_of_harmonic_means(method: str):
    """arXiv 2507.05394: the HM of the published averages is higher than the published average HM, for every method."""
    *averages, mean_of_hms = published.AVERAGES[method]
    assert hm(*averages) > mean_of_hms
    of_averages = {"zeroshot": 78.07, "promptfl": 83.90, "fedpgp": 79.98, "fedotp": 32.23, "pfedmoap": 72.45, "pfedmma": 84.55}
    assert hm(*averages) == pytest.approx(of_averages[method], abs=0.01)


def test_a_score_that_one_setting_has_not_has_no_average():
    runs = [done("ours", 0, (60.0, 30.0, 20.0)), done("ours", 0, (40.0, 40.0, None), "cifar10")]
    (row,) = table.rows(runs)
    assert (row.mean["local"], row.mean["novel"], row.mean["cm"]) == (50.0, None, None)
    assert row.mean["hm"] == pytest.approx(35.0)


def test_nothing_is_averaged_over_shots_or_over_a_grid():
    runs = [
        done("ours", 0, (k, k, k), name, shots=shots, combination=f"method.dim={dim}")
        for k, (name, shots, dim) in enumerate(itertools.product(("shapes", "dtd"), (1, 4), (8, 32)), start=1)
    ]
    labels = [part.label for part in table.parts(runs)]
    averages = [f"average over 2 settings, {shots}, method.dim={dim}" for shots in ("1 shot", "4 shots") for dim in (8, 32)]
    assert labels[:2] == ["shapes, 1 shot, method.dim=8", "shapes, 1 shot, method.dim=32"] and labels[8:] == averages
    assert [part.rows[0].mean["local"] for part in table.parts(runs)[8:]] == [3.0, 4.0, 5.0, 6.0]  # k and k + 4


def test_what_settings_have_not_in_common_is_in_the_title_of_their_average():
    runs = [
        done("ours", 0, (60.0, 30.0, 20.0)),
        done("ours", 0, (40.0, 40.0, None), "cifar10", tree={"data": {"protocol": "dirichlet", "shots": 16}}),
    ]
    assert table.parts(runs)[-1].title == "average over 2 settings, 16 shots, tiny, base_to_novel and dirichlet, 1 seed"


def test_shots_are_settings_of_their_own():
    runs = [done("ours", 0, (90.0, 80.0, 20.0), shots=1), done("ours", 0, (50.0, 40.0, 60.0), shots=0)]
    assert settings_of(runs) == ["shapes, 1 shot", "shapes"]


def test_a_seed_that_misses_a_setting_is_left_out():
    runs = [
        done("ours", 0, (90.0, 80.0, 20.0)),
        done("ours", 0, (50.0, 40.0, 60.0), "cifar10"),
        done("ours", 1, (99.0, 99.0, 99.0)),
    ]
    (row,) = table.rows(runs)
    assert (row.seeds, row.mean["local"], row.std["local"]) == (1, pytest.approx(70.0), None)


def test_a_method_that_misses_a_setting_has_no_average():
    runs = [
        done("ours", 0, (90.0, 80.0, 20.0)),
        done("ours", 0, (50.0, 40.0, 60.0), "cifar10"),
        done("theirs", 0, (99.0, 99.0, 99.0)),
    ]
    ours, theirs = table.rows(runs)
    assert ours.mean["local"] == pytest.approx(70.0)
    assert theirs.seeds == 0 and set(theirs.mean.values()) == set(theirs.std.values()) == {None}
    assert table.cells(theirs)[1:6] == ["-"] * 5
    assert table.rows(runs[2:])[0].mean["local"] == 99.0  # it has one in the table of its setting


def test_what_there_is_none_of():
    runs = [done("ours", 0, (80.0, 60.0, None)), done("ours", 1, (82.0, 64.0, None)), done("blind", 0, None), done("blind", 1, None)]
    ours, blind = table.rows(runs)
    assert ours.mean["novel"] is None and ours.std["novel"] is None
    assert ours.mean["hm"] == pytest.approx((hm(80.0, 60.0) + hm(82.0, 64.0)) / 2)
    assert set(blind.mean.values()) == {None}
    assert table.cells(ours)[3] == "-" and table.cells(blind)[1:6] == ["-"] * 5
    assert differences(runs) == []


def test_one_seed_shows_no_spread():
    one, three = table.rows([*ONE[:3], done("theirs", 0, (70.0, 66.0, 61.0))])[::-1]
    assert table.cells(one)[:4] == ["theirs", "70.00", "66.00", "61.00"]
    assert table.cells(three)[1] == "83.00 ± 3.61"
    assert table.cells(three)[6:] == ["1.5 kB", "2.500 MB", "40,800", "2.75"]


def test_a_run_with_nothing_right_has_hm_0():
    (row,) = table.rows([done("ours", 0, (0.0, 50.0, 50.0))])
    assert row.mean["hm"] == 0.0


# By domain.


def in_domains(method: str, seed: int, photo: float, sketch: float, dataset: str = "pacs", **more: float):
    own = {"domains": {"photo": photo, "sketch": sketch}, "domain_average": (photo + sketch) / 2}
    return done(method, seed, (50.0, 40.0, None), dataset, extra=own | more)


def test_domains_have_a_sheet_of_their_own():
    runs = [in_domains("ours", 0, 80.0, 60.0), in_domains("ours", 1, 84.0, 70.0), in_domains("theirs", 0, 30.0, 20.0)]
    main, domains = table.sheets(runs)
    assert main.head == table.HEAD and [row[0] for row in main.rows] == ["ours", "theirs"]
    assert domains.title.startswith("Local by domain: pacs, 16 shots") and domains.head == ("method", "photo", "sketch", "mean of domains")
    assert domains.rows == [["ours", "82.00 ± 2.83", "65.00 ± 7.07", "73.50 ± 4.95"], ["theirs", "30.00", "20.00", "25.00"]]


def test_an_unseen_domain_is_a_column():
    (_, domains) = table.sheets([in_domains("ours", 0, 80.0, 60.0, unseen=33.0), in_domains("theirs", 0, 30.0, 20.0, unseen=11.0)])
    assert domains.head[-2:] == ("mean of domains", "unseen domain") and [row[-1] for row in domains.rows] == ["33.00", "11.00"]


def test_over_settings_with_other_domains_their_means_are_averaged():
    other = done("ours", 0, (50.0, 40.0, None), "office", extra={"domains": {"dslr": 40.0}, "domain_average": 40.0})
    runs = [in_domains("ours", 0, 80.0, 60.0), other, in_domains("theirs", 0, 30.0, 20.0)]
    average = table.by_domain(table.parts(runs)[-1])
    assert (average.head, average.rows) == (("method", "mean of domains"), [["ours", "55.00"]])


def test_a_domain_that_is_called_average_is_one_of_them():
    run = done("ours", 0, (50.0, 40.0, None), extra={"domains": {"average": 10.0, "photo": 20.0}, "domain_average": 15.0})
    assert table.by_domain(table.parts([run])[0]).rows == [["ours", "10.00", "20.00", "15.00"]]


# One method.


def test_one_method_over_a_grid_is_one_sheet():
    runs = [done("ours", seed, (k + seed,) * 3, combination=f"method.dim={k}") for k in (8, 32) for seed in (0, 2)]
    (sheet,) = table.sheets(runs)
    assert sheet.title == "ours, tiny, base_to_novel, 2 seeds" and sheet.head == ("setting", *table.HEAD[1:])
    assert [row[:2] for row in sheet.rows] == [
        ["shapes, 16 shots, method.dim=8", "9.00 ± 1.41"],
        ["shapes, 16 shots, method.dim=32", "33.00 ± 1.41"],
    ]


def test_cm_of_an_older_run_follows_from_its_other_scores():
    run = done("ours", 0, (60.0, 30.0, 20.0))
    assert run.summary.accuracy is not None
    del run.summary.accuracy.scores["cm"]
    assert run.score("cm") == pytest.approx(42.0)
    del run.summary.accuracy.scores["hm_base_novel"]
    assert run.score("cm") is None


# Selected rounds.


def test_selected_rounds_are_told_below_the_table() -> None:
    """By what, of which methods, which rounds; nothing where all are the last."""
    (sheet,) = table.sheets(ONE)
    assert not any("evaluation.select" in note for note in sheet.notes)
    chosen = {"by": "best_test", "score": "local", "split": "test", "value": 88.0}
    runs = [done("ours", seed, (80.0, 70.0, 60.0), selected=chosen | {"round": 4 + seed}) for seed in (0, 1)]
    runs += [done("theirs", 0, (70.0, 66.0, 61.0), selected=chosen | {"by": "best_val", "split": "val", "score": "hm", "round": 9})]
    (sheet,) = table.sheets(runs)
    test, val = [note for note in sheet.notes if "evaluation.select" in note]
    assert test == (
        "evaluation.select=best_test: the round with the best Local on the test split, chosen on the images that it is tested on: "
        "optimistic. So are the numbers of ours (rounds 4, 5)."
    )
    assert val == "evaluation.select=best_val: the round with the best HM on the validation split. So are the numbers of theirs (round 9)."
