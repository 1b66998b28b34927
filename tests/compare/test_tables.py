"""The table of a comparison, from runs with made-up numbers: averages, spread, differences, and the files that hold them."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from typing import Any

import pytest
from rich.console import Console
from scipy import stats

from pfedmma.compare import table
from pfedmma.compare.grid import Plan
from pfedmma.compare.table import Done
from pfedmma.config import schema as configuration
from pfedmma.system import markdown as md
from tests.support.reported import round_row, run_summary, summary

UP, DOWN, TRAINED = 1_500, 2_500_000, 40_800


def done(method: str, seed: int, accuracy: tuple[float | None, ...] | None, dataset: str = "shapes", shots: int = 16, **more: Any) -> Done:
    """A run that ended with these Local, Base and Novel, whose HM is their harmonic mean as in a real summary."""
    tree = {"seed": seed, "run_dir": f"runs/{dataset}-{method}-{seed}", "data": {"shots": shots}}
    tree |= more.pop("tree", {})
    result: dict[str, Any] | None = None
    if accuracy is not None:
        present = [value for value in accuracy if value is not None]
        result = dict(zip(("local", "base", "novel"), accuracy, strict=True))
        result["hm"] = statistics.harmonic_mean(present) if present else None
    made = run_summary(
        method=method,
        accuracy=result,
        bytes_per_client_round=UP,
        bytes_down_per_client_round=DOWN,
        trained_parameters=more.get("trained", TRAINED),
        selected=more.get("selected"),
        comm=summary()["comm"] | {"uplink_bytes": 10 * UP, "downlink_bytes": 10 * DOWN},
    )
    seconds = more.get("seconds", (9.0, 1.0, 2.0))
    parts = [{"train": s, "wait": 0.25, "exchange": 0.5, "evaluate": 100.0, "total": 200.0} for s in seconds]
    rounds = [round_row(number, seconds=part) for number, part in enumerate(parts, start=1)]
    return Done(Plan(method, dataset, configuration.resolve(tree)), made, rounds)


ONE = [
    done("ours", 0, (80.0, 70.0, 60.0)),
    done("ours", 1, (82.0, 69.0, 64.0)),
    done("ours", 2, (87.0, 73.0, 59.0)),
    done("theirs", 0, (70.0, 66.0, 61.0)),
    done("theirs", 1, (75.0, 65.0, 63.0)),
    done("theirs", 2, (71.0, 69.0, 62.5)),
]


def hm(*values: float) -> float:
    return len(values) / sum(1 / value for value in values)


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


def test_over_settings_it_is_the_hm_of_the_averages():
    runs = [
        done("ours", 0, (90.0, 80.0, 20.0), "shapes"),
        done("ours", 0, (50.0, 40.0, 60.0), "cifar10"),
        done("ours", 1, (92.0, 84.0, 24.0), "shapes"),
        done("ours", 1, (50.0, 40.0, 64.0), "cifar10"),
    ]
    (row,) = table.rows(runs)
    averages = [hm(70.0, 60.0, 40.0), hm(71.0, 62.0, 44.0)]
    assert row.mean["hm"] == pytest.approx(statistics.fmean(averages)) and row.std["hm"] == pytest.approx(statistics.stdev(averages))
    assert row.mean["local"] == pytest.approx(70.5) and row.std["novel"] == pytest.approx(math.sqrt(8.0))
    own = statistics.fmean([hm(90.0, 80.0, 20.0), hm(50.0, 40.0, 60.0), hm(92.0, 84.0, 24.0), hm(50.0, 40.0, 64.0)])
    assert abs(row.mean["hm"] - own) > 1  # the mean of the runs' own is another number
    names = [name for name, _ in table.tables(runs)]
    assert [name.split(", tiny")[0] for name in names] == ["shapes, 16 shots", "cifar10, 16 shots", "average over 2 settings"]
    assert [len(part) for _, part in table.tables(runs)] == [2, 2, 4]


def test_shots_are_settings_of_their_own():
    runs = [done("ours", 0, (90.0, 80.0, 20.0), shots=1), done("ours", 0, (50.0, 40.0, 60.0), shots=0)]
    assert table.settings_of(runs) == ["shapes, 1 shot", "shapes"]


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
    assert table.cells(theirs)[1:5] == ["-"] * 4
    assert table.rows(runs[2:])[0].mean["local"] == 99.0  # it has one in the table of its setting


def test_what_there_is_none_of():
    runs = [done("ours", 0, (80.0, 60.0, None)), done("ours", 1, (82.0, 64.0, None)), done("blind", 0, None), done("blind", 1, None)]
    ours, blind = table.rows(runs)
    assert ours.mean["novel"] is None and ours.std["novel"] is None
    assert ours.mean["hm"] == pytest.approx((hm(80.0, 60.0) + hm(82.0, 64.0)) / 2)
    assert set(blind.mean.values()) == {None}
    assert table.cells(ours)[3] == "-" and table.cells(blind)[1:5] == ["-"] * 4
    assert table.differences(runs) == []


def test_one_seed_shows_no_spread():
    one, three = table.rows([*ONE[:3], done("theirs", 0, (70.0, 66.0, 61.0))])[::-1]
    assert table.cells(one)[:4] == ["theirs", "70.00", "66.00", "61.00"]
    assert table.cells(three)[1] == "83.00 ± 3.61"
    assert table.cells(three)[5:] == ["1.5 kB", "2.500 MB", "40,800", "2.75"]


def test_a_run_with_nothing_right_has_hm_0():
    (row,) = table.rows([done("ours", 0, (0.0, 50.0, 50.0))])
    assert row.mean["hm"] == 0.0


# Differences.


def test_differences_are_those_of_a_paired_t_test():
    ours, theirs = ([hm(*[run.score(c) for c in ("local", "base", "novel")]) for run in part] for part in (ONE[:3], ONE[3:]))
    wanted = stats.ttest_rel(ours, theirs)
    interval = wanted.confidence_interval(0.95)
    first, second = table.differences(ONE)
    assert (first.method, first.other, first.pairs) == ("ours", "theirs", 3)
    assert first.mean == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs))
    assert (first.low, first.high, first.p) == pytest.approx((interval.low, interval.high, wanted.pvalue))
    assert (second.mean, second.low, second.high, second.p) == pytest.approx((-first.mean, -first.high, -first.low, first.p))
    # By hand: t with 2 degrees of freedom leaves 2.5 % above 4.302653.
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    half = 4.302653 * statistics.stdev(gaps) / math.sqrt(3)
    assert (first.low, first.high) == pytest.approx((first.mean - half, first.mean + half), rel=1e-5)
    assert str(first) == (
        f"ours - theirs: {first.mean:+.2f} points of HM, 95 % interval {first.low:+.2f} to {first.high:+.2f}, "
        f"paired t-test over 3 pairs: p = {first.p:.2g}"
    )


def test_pairs_are_where_both_have_the_setting_and_the_seed():
    runs = [
        done("theirs", 4, (10.0, 10.0, 10.0)),
        done("theirs", 1, (20.0, 20.0, 20.0)),
        done("theirs", 0, (40.0, 40.0, 40.0)),
        done("theirs", 0, (60.0, 60.0, 60.0), "cifar10"),
        done("ours", 0, (41.0, 41.0, 41.0)),
        done("ours", 1, (23.0, 23.0, 23.0)),
        done("ours", 0, (61.0, 61.0, 61.0), "cifar10"),
        done("ours", 9, (99.0, 99.0, 99.0)),
        done("ours", 5, None),
    ]
    found = {d.method: d for d in table.differences(runs)}
    assert found["ours"].pairs == found["theirs"].pairs == 3
    assert found["ours"].mean == pytest.approx((1 + 3 + 1) / 3)
    assert found["ours"].p == pytest.approx(stats.ttest_rel([41, 23, 61], [40, 20, 60]).pvalue)


def test_the_other_one_is_the_best_by_mean_hm():
    runs = []
    for method, values in (("a", (50.0, 60.0)), ("b", (80.0, 10.0)), ("c", (55.0, 57.0)), ("far", (90.0,))):
        runs += [done(method, seed + 9 * (method == "far"), (value,) * 3) for seed, value in enumerate(values)]
    found = {d.method: d.other for d in table.differences(runs)}
    assert found == {"a": "c", "b": "c", "c": "a"}  # far has no seed in common with any


@pytest.mark.parametrize("gap", [0.0, 2.0])
def test_without_spread_there_is_no_test(gap: float):
    runs = [done("ours", 0, (50.0 + gap,) * 3), done("theirs", 0, (50.0,) * 3)]
    first, _ = table.differences(runs)
    assert (first.pairs, first.low, first.high, first.p) == (1, None, None, None)
    assert str(first) == f"ours - theirs: +{gap:.2f} points of HM (1 pair: no test)"
    first, _ = table.differences([*runs, done("ours", 1, (64.0 + gap,) * 3), done("theirs", 1, (64.0,) * 3)])
    assert str(first) == f"ours - theirs: +{gap:.2f} points of HM (2 pairs: no test)"


def test_a_method_alone_has_no_difference():
    assert table.differences(ONE[:3]) == []


# What is written.

WILD = [
    *ONE,
    done("a|b [red] [/x]", 0, (50.0, 40.0, None)),
    done("blind", 0, None),
    done("ours", 0, (50.0, 40.0, 60.0), "cifar, 10"),
]


def test_markdown_is_a_table():
    text = table.markdown(WILD)
    assert text.endswith("\n") and text.count(table.NOTE) == 1
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(block) for block in blocks] == [2 + 4, 2 + 1, 2 + 1]  # the average has the methods that are everywhere
    for block in blocks:
        cells = [re.split(r"(?<!\\)\|", line) for line in block]
        assert {len(line) for line in cells} == {len(table.HEAD) + 2}
        assert all(line[0] == line[-1] == "" for line in cells)
        assert [cell.strip() for cell in cells[0][1:-1]] == list(table.HEAD)
        assert all(re.fullmatch("---:?", cell) for cell in cells[1][1:-1])
    assert "| `ours` | 83.00 ± 3.61 | 70.67 ± 2.08 | 61.00 ± 2.65 |" in text
    assert r"`a\|b [red] [/x]`" in text
    titles = [line.strip("*") for line in text.splitlines() if line.startswith("**")]
    assert titles == [
        "shapes, 16 shots, tiny, base_to_novel, 3 seeds",
        "cifar, 10, 16 shots, tiny, base_to_novel, 1 seed",
        "average over 2 settings, tiny, base_to_novel, 3 seeds",
    ]
    assert all(f"- {difference}" in text for difference in table.differences(ONE[:3] + ONE[3:]))


def test_tuning_on_the_validation_split_is_said():
    run = done("ours", 0, (50.0, 40.0, 60.0), tree={"evaluation": {"split": "val"}})
    assert table.title([run]).endswith("1 seed (validation split)")
    assert "validation" not in table.title(ONE)


def test_the_table_csv_reads_back_to_the_numbers():
    lines = list(csv.DictReader(io.StringIO(table.table_csv(WILD))))
    wanted = [(name, row) for name, part in table.tables(WILD) for row in table.rows(part)]
    assert len(lines) == len(wanted) == 6
    for line, (name, row) in zip(lines, wanted, strict=True):
        assert (line["table"], line["method"], int(line["seeds"])) == (name, row.method, row.seeds)
        for column in ("local", "base", "novel", "hm"):
            for kind, value in (("mean", row.mean[column]), ("std", row.std[column])):
                assert line[f"{column}_{kind}"] == ("" if value is None else str(value))
        assert (int(line["bytes_up"]), int(line["bytes_down"]), int(line["trained_parameters"])) == (UP, DOWN, TRAINED)
        assert float(line["seconds_per_round"]) == row.seconds == 2.75
        assert None not in line  # no line is longer than the first


def test_the_runs_csv_reads_back_to_the_numbers():
    lines = list(csv.DictReader(io.StringIO(table.runs_csv(WILD))))
    assert len(lines) == len(WILD)
    for line, run in zip(lines, WILD, strict=True):
        assert (line["method"], line["dataset"], int(line["seed"])) == (run.plan.method, run.plan.dataset, run.plan.config.seed)
        assert (int(line["shots"]), line["run"]) == (16, run.plan.name)
        for column in ("local", "base", "novel", "hm"):
            value = run.score(column)
            assert line[column] == ("" if value is None else str(value))
        assert (int(line["uplink_bytes"]), int(line["downlink_bytes"]), float(line["seconds_per_round"])) == (10 * UP, 10 * DOWN, 2.75)


def test_the_terminal_shows_labels_as_they_are():
    shown = Console(width=160, record=True, file=io.StringIO())
    shown.print(table.terminal("title [bold] [/x]", WILD))
    text = shown.export_text()
    assert "title [bold] [/x]" in text and "a|b [red] [/x]" in text and "83.00 ± 3.61" not in text  # averaged with cifar
    assert "65.00" in text


def test_selected_rounds_are_told_below_the_tables() -> None:
    """By what, of which methods, which rounds; nothing where all are the last."""
    assert table.notes(ONE) == [table.NOTE]
    chosen = {"by": "best_test", "score": "local", "split": "test", "value": 88.0}
    runs = [done("ours", seed, (80.0, 70.0, 60.0), selected=chosen | {"round": 4 + seed}) for seed in (0, 1)]
    runs += [done("theirs", 0, (70.0, 66.0, 61.0), selected=chosen | {"by": "best_val", "split": "val", "score": "hm", "round": 9})]
    test, val, note = table.notes([*runs, *ONE])
    assert test == (
        "evaluation.select=best_test: the round with the best Local on the test split, chosen on the images that it is tested on: "
        "optimistic. So are the numbers of ours (rounds 4, 5)."
    )
    assert val == "evaluation.select=best_val: the round with the best HM on the validation split. So are the numbers of theirs (round 9)."
    assert note == table.NOTE
    assert [line in table.markdown(runs) for line in map(md.escape, (test, val))] == [True, True]
