"""The files that hold the tables of a comparison, and the terminal, from runs with made-up numbers."""

from __future__ import annotations

import csv
import io
import re

from rich.console import Console

from pfedmma.compare import table, written
from pfedmma.compare.differences import differences
from pfedmma.system import latex
from tests.support.compared import DOWN, ONE, TRAINED, UP, done

WILD = [
    *ONE,
    done("a|b [red] [/x]", 0, (50.0, 40.0, None)),
    done("blind", 0, None),
    done("ours", 0, (50.0, 40.0, 60.0), "cifar, 10"),
]


def test_markdown_is_a_table():
    text = written.markdown(table.sheets(WILD))
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
        "average over 2 settings, 16 shots, tiny, base_to_novel, 3 seeds",
    ]
    assert all(f"- {difference}" in text for difference in differences(ONE[:3] + ONE[3:]))


def test_tuning_on_the_validation_split_is_said():
    run = done("ours", 0, (50.0, 40.0, 60.0), tree={"evaluation": {"split": "val"}})
    assert table.title([run]).endswith("1 seed (validation split)")
    assert "validation" not in table.title(ONE)


def costs(line: dict[str, str]) -> tuple[int, int, int]:
    """Of one client, from a line of any CSV file: the columns have the same names in all."""
    names = ("uplink_bytes_per_client_round", "downlink_bytes_per_client_round", "trained_parameters_per_client")
    up, down, trained = (int(line[name]) for name in names)
    return up, down, trained


def test_the_table_csv_reads_back_to_the_numbers():
    lines = list(csv.DictReader(io.StringIO(written.table_csv(WILD))))
    wanted = [(part.title, row) for part in table.parts(WILD) for row in part.rows]
    assert len(lines) == len(wanted) == 6
    for line, (name, row) in zip(lines, wanted, strict=True):
        assert (line["table"], line["method"], int(line["seeds"])) == (name, row.method, row.seeds)
        for column in ("local", "base", "novel", "hm", "cm", "hm_base_novel"):
            for kind, value in (("mean", row.mean[column]), ("std", row.std[column])):
                assert line[f"{column}_percent_{kind}"] == ("" if value is None else str(value))
        assert costs(line) == (UP, DOWN, TRAINED)
        assert float(line["seconds_per_round"]) == row.seconds == 2.75
        assert None not in line  # no line is longer than the first


def test_the_runs_csv_reads_back_to_the_numbers():
    lines = list(csv.DictReader(io.StringIO(written.runs_csv(WILD))))
    assert len(lines) == len(WILD)
    for line, run in zip(lines, WILD, strict=True):
        assert (line["method"], line["dataset"], int(line["seed"])) == (run.plan.method, run.plan.dataset, run.plan.config.seed)
        assert (int(line["shots"]), line["run"]) == (16, run.plan.name)
        for column in ("local", "base", "novel", "hm", "cm", "hm_base_novel"):
            value = run.score(column)
            assert line[f"{column}_percent"] == ("" if value is None else str(value))
        assert costs(line) == (UP, DOWN, TRAINED)
        whole = (int(line["uplink_bytes_per_run"]), int(line["downlink_bytes_per_run"]), float(line["seconds_per_round"]))
        assert whole == (10 * UP, 10 * DOWN, 2.75)


def test_settings_of_a_grid_are_columns_of_the_runs_csv():
    tree = {"method": {"dim": 8, "exchange": ["shared", "visual.down"]}}
    runs = [done("ours", 0, (50.0, 40.0, 60.0), combination="...", tree=tree, grid=("method.dim", "method.exchange")), *ONE]
    lines = list(csv.DictReader(io.StringIO(written.runs_csv(runs))))
    assert [(line["method.dim"], line["method.exchange"]) for line in lines[:2]] == [("8", "shared+visual.down"), ("32", "")]
    assert "method.dim" not in written.runs_csv(ONE)


def test_the_terminal_shows_labels_as_they_are():
    shown = Console(width=160, record=True, file=io.StringIO())
    sheet = table.Sheet("title [bold] [/x]", table.HEAD, table.sheets(WILD)[0].rows, [])
    shown.print(written.terminal(sheet))
    text = shown.export_text()
    assert "title [bold] [/x]" in text and "a|b [red] [/x]" in text and "83.00 ± 3.61" in text


def test_the_terminal_has_room_for_all_columns():
    shown = Console(width=140, record=True, file=io.StringIO())
    shown.print(written.terminal(table.sheets(ONE)[0]))
    text = shown.export_text()
    assert "…" not in text and all(name in text for name in table.HEAD)


def test_latex_is_a_plain_tabular():
    text = written.latex(table.sheets([*WILD, done("[50%] \\of_{a}$ & #1", 0, (50.0, 40.0, 60.0))]))
    assert text.isascii() and "booktabs" not in text and "usepackage" not in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    lines = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert {len(re.split(r"(?<!\\)&", line)) for line in lines} == {len(table.HEAD)}
    assert r"ours & 83.00 $\pm$ 3.61 & 70.67 $\pm$ 2.08" in text
    assert r"{[}50\%{]} \textbackslash{}of\_\{a\}\$ \& \#1 & 50.00" in text
    assert all(rf"\\{{\small {latex.escape(str(difference))}}}" in text for difference in differences(ONE))
    bare = re.sub(r"\\\\|\\[{}]", "", text)  # without ends of lines and braces that are shown
    assert bare.count("{") == bare.count("}")


def test_domains_are_columns_of_the_csv_files():
    runs = [done("ours", 0, (50.0, 40.0, None), "pacs", extra={"domains": {"photo": 80.0}, "domain_average": 80.0}), *ONE]
    lines = list(csv.DictReader(io.StringIO(written.table_csv(runs))))
    photo = [line["domain:photo_percent_mean"] for line in lines]
    assert (photo[0], lines[0]["domain_average_percent_mean"], photo[1]) == ("80.0", "80.0", "")
    lines = list(csv.DictReader(io.StringIO(written.runs_csv(runs))))
    assert (lines[0]["domain:photo_percent"], lines[1]["domain:photo_percent"]) == ("80.0", "")
