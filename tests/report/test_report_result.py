"""The first screen of the page: the result, the methods beside each other, and by what and when the runs were made."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from pfedmma.report import main
from pfedmma.report.charts import heights
from pfedmma.report.groups import grouped
from pfedmma.report.result import beyond
from pfedmma.report.runs import read_all
from pfedmma.report.script import SCRIPT
from tests.support.reported import Page, accuracy, member, origin, round_, summary, write_run

# The interval of 80 and 90: standard error 5, and 12.7062 of Student's t with one degree of freedom.
HALF = 63.53


def made(method: str, seed: int, local: float, **more: Any) -> dict[str, Any]:
    one = summary(method, seed=seed, accuracy=accuracy(local), zero_shot=accuracy(60.0, 50.0, 51.0), **more)
    one["config"] |= {"seed": seed}
    return one


def texts(*runs: Path) -> tuple[str, Page]:
    main([*map(str, runs), "--html", str(runs[0].parent / "page.html"), "--markdown", str(runs[0].parent / "page.md")])
    return (runs[0].parent / "page.md").read_text(encoding="utf-8"), Page.from_file(runs[0].parent / "page.html")


def seeds(home: Path) -> list[Path]:
    """pfedmma over two seeds, local over the same, promptfl over one."""
    runs = [write_run(home / f"p{seed}", made("pfedmma", seed, 80.0 + 10 * seed)) for seed in (0, 1)]
    runs += [write_run(home / f"l{seed}", made("local", seed, 75.0 + 10 * seed, up=0)) for seed in (0, 1)]
    return [*runs, write_run(home / "one", made("promptfl", 0, 99.0 - 50.0))]


def test_the_result_comes_first_and_settings_last(tmp_path: Path):
    _, page = texts(write_run(tmp_path / "run"))
    ids = [value for name, value in page.attributes if name == "id"]
    assert ids[:3] == ["result", "curves", "clients"] and ids[-2:] == ["setting", "environment"]
    shown = page.texts[page.texts.index("pfedmma: percent") :]
    assert shown[1:13] == [
        *("Local", "90.00", "28.75 above zero-shot", "Base", "60.00", "10.00 above zero-shot"),
        *("Novel", "62.00", "11.00 above zero-shot", "HM", "80.00", "28.75 above zero-shot"),
    ]
    assert "Clients of pfedmma against zero-shot: 2 of 4 gain, 1 lose, median +5.00" in page.texts
    assert "1 lose" in page.texts and "2 gain" in page.texts


def test_seeds_are_one_line_with_an_interval_and_differences_to_local_are_paired(tmp_path: Path):
    text, page = texts(*seeds(tmp_path))
    assert f"| pfedmma | 2 | 85.00 (± {HALF}) |" in text.replace("**", "") and "| promptfl | 1 | 49.00 |" in text
    row = next(line for line in text.splitlines() if line.startswith("| pfedmma | 2 |"))
    assert f"| +25.00 (± {HALF}) | +5.00 (± 0.00) | 12.7 kB |" in row  # 80 - 75 and 90 - 85: no spread in the difference
    assert "pfedmma, the highest HM of 2 methods beside local: percent; means over 2 seeds, ± their 95 % intervals" in page.texts
    assert "5.00 above local" in page.texts and "25.00 above zero-shot" in page.texts and f"± {HALF}" in page.texts
    assert "| zero-shot |  | 60.00 (± 0.00) |" in text
    assert f"pfedmma: 75.00 ± {HALF} over 2 seeds" in page.texts  # a row of the drawing: HM is Local - 10 here


@pytest.mark.parametrize(("points", "said"), [(-5.334, "5.33 below local"), (0.1, "0.10 above local"), (-0.004, "equal to local")])
def test_a_difference_is_said_in_words(points: float, said: str):
    assert beyond(points, "local") == said


def test_labels_of_lines_that_lie_together_do_not():
    assert heights([100.0, 60.0]) == [96.0, 56.0]  # above their lines
    assert heights([100.0, 102.0]) == [96.0, 114.0] and heights([102.0, 100.0]) == [114.0, 96.0]
    one, two, three = heights([100.0, 101.0, 102.0])
    assert one + 12 <= two and two + 12 <= three


def test_curves_of_seeds_are_their_mean_in_a_band(tmp_path: Path):
    for seed, loss in ((0, 1.0), (1, 3.0)):
        rows = [round_(n, 4, accuracy(70.0 + 10 * seed)) | {"loss": loss} for n in (1, 2)]
        write_run(tmp_path / f"p{seed}", made("pfedmma", seed, 80.0), rows)
    _, page = texts(tmp_path / "p0", tmp_path / "p1")
    assert "pfedmma, round 2: 2" in page.texts and "pfedmma, round 2: 75" in page.texts and "pfedmma, round 1: 1" not in page.texts
    classes = [value for name, value in page.attributes if name == "class"]
    assert classes.count("band s0") == 6  # loss, four accuracies, HM against bytes
    assert any("a standard deviation wide" in text for text in page.texts)


def test_accuracy_stands_against_the_bytes_that_were_moved_for_it(tmp_path: Path):
    """Round k of four clients moves 8 x 12,672 bytes; what moves none is a level."""
    _, page = texts(write_run(tmp_path / "run"))
    assert "pfedmma, 203 kB: 62" in page.texts and "pfedmma, 304 kB: 63" in page.texts
    _, page = texts(write_run(tmp_path / "a"), write_run(tmp_path / "b", made("local", 0, 80.0, up=0)))
    assert "local, no bytes" in page.texts


def test_runs_of_other_settings_are_no_seeds_of_each_other(tmp_path: Path):
    one, other, data = (made("pfedmma", seed, 80.0) for seed in (0, 1, 0))
    other["config"]["method.dim"] = 8
    data |= {"dataset": "dtd"}
    runs = read_all([write_run(tmp_path / str(k), each) for k, each in enumerate((one, other, data))])
    named, groups = grouped(runs)
    assert [group.label for group in groups] == ["pfedmma, shapes, dim 32", "pfedmma, shapes, dim 8", "pfedmma, dtd, dim 32"]
    assert named[0].look == named[2].look != named[1].look and named[1].group == groups[1].label
    again = made("pfedmma", 1, 80.0)
    again["config"] |= {"optimizer.lr": "5e-2", "checkpoint.keep": 7}  # the same number; and no result depends on the other
    assert len(grouped(read_all([tmp_path / "0", write_run(tmp_path / "again", again)]))[1]) == 1


def test_a_run_that_repeats_a_seed_is_no_further_draw(tmp_path: Path):
    text, _ = texts(*(write_run(tmp_path / name, made("pfedmma", 0, 80.0)) for name in ("first", "second")))
    assert "| first | 1 | 80.00 |" in text.replace("**", "") and "| second | 1 | 80.00 |" in text.replace("**", "")


def test_several_settings_have_tables_of_their_own(tmp_path: Path):
    runs = [write_run(tmp_path / name, made("pfedmma", 0, 80.0) | {"dataset": name}) for name in ("shapes", "dtd")]
    text, page = texts(*runs, write_run(tmp_path / "l", made("local", 0, 70.0)))
    assert "**Methods on shapes (base_to_novel), tiny, 4 clients, 2 images a class: percent" in text
    assert "numbers" not in [value for name, value in page.attributes if name == "class"]
    assert any(text.startswith("HM, percent, against bytes on dtd") for text in page.texts)


def test_it_says_by_what_and_when_a_run_was_made(tmp_path: Path):
    text, page = texts(write_run(tmp_path / "run", summary(origin=origin(), version="0.2.0")))
    assert "finished · 2026-11-26 10:40 UTC · 1.89 s in 3 rounds · revision 0123456789ab" in page.texts
    for line in ("| command | python -m pfedmma.train seed=0 |", "| state | finished |", "| pfedmma | 0.2.0 |"):
        assert line in text, line
    text, page = texts(write_run(tmp_path / "old"))
    assert "| command | not recorded |" in text and any("(of its files)" in text for text in page.texts)


@pytest.mark.parametrize(("lock", "state"), [(None, "interrupted"), ('{"machine": "elsewhere", "process": 1}', "going on")])
def test_a_run_without_a_summary_goes_on_or_was_interrupted(tmp_path: Path, lock: str | None, state: str):
    run = write_run(tmp_path / "run")
    (run / "summary.json").unlink()
    if lock:
        (run / ".lock").write_text(lock)
    text, page = texts(run)
    assert (
        "pfedmma: percent (so far)" in page.texts
        and f"| state | {state} |" in text
        and page.texts[2].endswith(f"Not finished: pfedmma ({state}).")
    )


def test_a_folder_of_runs_has_a_page_that_leads_to_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = tmp_path / "my runs"
    for run in seeds(home / "a comparison"):
        assert run.is_dir()
    (home / "no run").mkdir()
    main([str(home)])
    assert f"report: {home / 'report.html'}" in capsys.readouterr().out
    page = Page.from_file(home / "report.html")
    links = [value for name, value in page.attributes if name == "href" and not value.startswith("#")]
    assert links == [f"a%20comparison/{name}/report.html" for name in ("l0", "l1", "one", "p0", "p1")]
    assert "runs" in page.sections() and "5 runs: 5 finished" in page.text and "pfedmma, seed 1" in page.texts
    assert "pfedmma on shapes" in Page.from_file(home / "a comparison" / "p0" / "report.html").texts


def test_every_client_stands_in_a_table_that_can_be_sorted(tmp_path: Path):
    rows = [member(k, 60.0, 50.0 + k) for k in range(40)]
    text, page = texts(write_run(tmp_path / "run", summary(per_client=rows)))
    assert "| 39 | 60.00 | 89.00 | +29.00 | 60.00 | 62.00 | 12 | 5 | 2 |" in text and ("class", "sortable") in page.attributes
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    (policy,) = [value for name, value in page.attributes if name == "content" and "default-src" in value]
    assert page.scripts == [SCRIPT] and f"script-src 'sha256-{digest}'" in policy
