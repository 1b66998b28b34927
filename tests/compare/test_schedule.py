"""Doing the runs of a comparison: a real grid, what is not done again, what goes on, and what fails."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pfedmma import train
from pfedmma.compare import figures, run_log, schedule
from pfedmma.compare.__main__ import main
from pfedmma.compare.schedule import Slots
from pfedmma.config import schema as configuration
from pfedmma.records import origin
from pfedmma.system.errors import UserError
from tests.support import small
from tests.support.programs import python
from tests.support.reported import Page

ROOT = Path(__file__).resolve().parents[2]
RUN = "caltech101-2-shot-{}-seed0"
PFEDMMA, PROMPTFL = RUN.format("pfedmma"), RUN.format("promptfl")
# The small run's settings on a few pictures: a process takes little longer than its imports.
OWN = {"data.name": "caltech101", "data.clients": 2, "federation.participation": 1.0, "evaluation.every": 1, "data.root": "images"}


def compare_file(path: Path, **keys: Any) -> None:
    """A compare file on the small run's settings; JSON is YAML."""
    common = dict(item.split("=", 1) for item in small.SETTINGS)
    settings = {name: json.loads(value) if value[0].isdigit() else value for name, value in common.items()} | OWN
    path.write_text(json.dumps({"settings": settings, **keys}))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, a compare file and its two runs, done by processes of their own."""
    folder = tmp_path_factory.mktemp("grid")
    small.write_caltech(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        compare_file(folder / "mine.yaml", methods=["pfedmma", "promptfl"])
        main(["mine.yaml", "--jobs", "2"])
    return folder


@pytest.fixture
def here(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished comparison, as the working folder; no test may start a process unless it says so."""
    shutil.copytree(grid, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(subprocess, "Popen", no_process)
    monkeypatch.setattr(origin, "revision", lambda folder: "")  # asks git, which is a process
    monkeypatch.setattr(figures, "draw", lambda runs, out, radar: None)  # seconds each, and no subject here but in what `grid` has left
    return tmp_path / "copy"


POPEN = subprocess.Popen


def no_process(*args: Any, **options: Any) -> None:
    raise AssertionError(f"a process was started: {args}")


class Inside:
    """Takes the place of `subprocess.Popen`: the run is done here and now, with the output that its process would have."""

    started: ClassVar[list[str]] = []

    def __init__(self, command: list[str], stdout: Any, stderr: Any, env: dict[str, str], start_new_session: bool) -> None:
        assert command[:3] == [sys.executable, "-m", "pfedmma.train"] and start_new_session
        self.started.append(Path(command[4]).stem)
        self.returncode = 0
        try:
            train.main(command[3:])
        except UserError as error:
            stdout.write(f"a line before\nerror: {error}\nof the launcher\n".encode())
            self.returncode = 2

    def poll(self) -> int:
        return self.returncode


class Forked(Inside):
    """Takes the place of `subprocess.Popen`: a process of its own, which is waited for."""

    def __init__(self, command: list[str], stdout: Any, stderr: Any, env: dict[str, str], start_new_session: bool) -> None:
        done = python(command[1:], env=env)
        stdout.write((done.stdout + done.stderr).encode())
        self.returncode = done.returncode


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, here: Path) -> list[str]:
    """Runs are done inside this process; the names of those that were."""
    monkeypatch.setattr(Inside, "started", [])
    monkeypatch.setattr(subprocess, "Popen", Inside)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return Inside.started


def summary(name: str, root: str = "runs/compare/mine") -> dict[str, Any]:
    return small.summary(Path(root) / name)


def runs_csv(folder: str = "runs/compare/mine") -> dict[str, dict[str, str]]:
    with open(Path(folder) / "runs.csv", newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


# What is left behind.


def test_tables_and_figures_are_there(here: Path):
    out = here / "runs" / "compare" / "mine"
    names = {"table.md", "table.tex", "table.csv", "runs.csv", "report.html"}
    names |= {f"{name}.{kind}" for name in ("accuracy", "accuracy_by_round", "accuracy_by_bytes") for kind in ("png", "pdf", "svg")}
    assert {path.name for path in out.iterdir()} == names | {"plans", PFEDMMA, PROMPTFL}
    assert {path.name for path in (out / "plans").iterdir()} == {f"{run}.{kind}" for run in (PFEDMMA, PROMPTFL) for kind in ("yaml", "log")}
    assert "round 2/2" in (out / "plans" / f"{PFEDMMA}.log").read_text()


def test_the_page_has_all_runs_and_the_radar_is_drawn_where_it_is_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    monkeypatch.setattr(figures, "draw", lambda runs, out, radar: asked.append(radar))
    for more in ([], ["--radar"]):
        main(["mine.yaml", "--table-only", *more])
    assert asked == [False, True]
    page = Page.from_file(here / "runs" / "compare" / "mine" / "report.html")
    hm = f"{summary(PFEDMMA)['accuracy']['hm']:.2f}"
    assert {"result", "runs"} <= page.sections() and {"pfedmma", "promptfl", hm} <= set(page.texts)


def test_they_agree_with_the_summaries(here: Path):
    out = here / "runs" / "compare" / "mine"
    with open(out / "table.csv", newline="") as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    text, single = (out / "table.md").read_text(), runs_csv()
    assert list(table) == list(single) == ["pfedmma", "promptfl"]
    for method, name in (("pfedmma", PFEDMMA), ("promptfl", PROMPTFL)):
        wanted = summary(name)
        for column in ("local", "base", "novel", "hm", "cm"):
            assert float(single[method][f"{column}_percent"]) == wanted["accuracy"][column]
            assert float(table[method][f"{column}_percent_mean"]) == pytest.approx(wanted["accuracy"][column])
            assert table[method][f"{column}_percent_std"] == ""
        assert int(single[method]["uplink_bytes_per_run"]) == wanted["comm"]["uplink_bytes"] > 0
        assert int(single[method]["downlink_bytes_per_run"]) == wanted["comm"]["downlink_bytes"] > 0
        assert int(table[method]["uplink_bytes_per_client_round"]) == wanted["bytes_per_client_round"]
        assert int(table[method]["trained_parameters_per_client"]) == wanted["trained_parameters"]
        assert (single[method]["dataset"], single[method]["shots"], single[method]["seed"]) == ("caltech101", "2", "0")
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{method}`")]
        assert [cell.strip() for cell in line.split("|")][2:7] == [
            f"{wanted['accuracy'][c]:.2f}" for c in ("local", "base", "novel", "hm", "cm")
        ]
    assert f"{len(set(table))} seed" not in text and "caltech101, 2 shots, tiny, base_to_novel, 1 seed" in text


# What is done is not done again.


def test_what_is_done_is_not_done_again(here: Path, capsys: pytest.CaptureFixture[str]):
    before = runs_csv()
    main(["mine.yaml"])  # no process may be started
    assert "2 runs, 2 already done" in capsys.readouterr().out and runs_csv() == before
    main(["mine.yaml", "--dry-run"])
    assert capsys.readouterr().out == ""


def test_a_run_without_summary_goes_on_alone_and_ends_the_same(started: list[str]):
    wanted = summary(PROMPTFL)
    Path("runs/compare/mine", PROMPTFL, "summary.json").unlink()
    main(["mine.yaml"])
    assert started == [PROMPTFL]
    again = small.timeless(summary(PROMPTFL))
    assert {name for name, value in small.timeless(wanted).items() if again[name] != value} <= {"comm"}
    moved = ("payload_bytes", "uplink_bytes", "downlink_bytes")  # the calls of the second evaluation are counted as well
    assert [again["comm"][name] for name in moved] == [wanted["comm"][name] for name in moved]
    assert float(runs_csv()["promptfl"]["hm_percent"]) == wanted["accuracy"]["hm"]


def test_more_rounds_go_on(started: list[str]):
    Path("runs/compare/mine", PFEDMMA, "kept").touch()
    first = small.metrics(Path("runs/compare/mine", PFEDMMA))
    main(["mine.yaml", "federation.rounds=3"])
    assert started == [PFEDMMA, PROMPTFL]
    for name in started:
        rows = small.metrics(Path("runs/compare/mine", name))
        assert [row["round"] for row in rows] == [1, 2, 3] and summary(name)["rounds"] == 3
    assert small.metrics(Path("runs/compare/mine", PFEDMMA))[:2] == first  # nothing was run again
    main(["mine.yaml", "federation.rounds=3"])
    assert len(started) == 2


@pytest.mark.parametrize(("setting", "says"), [("data.clients=1", "data.clients (was 2, is 1)"), ("seed=3", "seed (was 0, is 3)")])
def test_a_run_of_other_settings_is_refused(here: Path, setting: str, says: str):
    for more in ([], ["--table-only"], ["--dry-run"]):
        with pytest.raises(UserError) as caught:
            main(["mine.yaml", setting, *more])
        assert says in str(caught.value)


@pytest.mark.parametrize("setting", ["federation.clients_per_pass=1", "data.cache_gb=1", "distributed.timeout=77", "checkpoint.keep=1"])
def test_what_no_result_depends_on_may_change(here: Path, setting: str):
    main(["mine.yaml", setting])


def test_the_settings_of_methods_that_take_no_part_may_change(here: Path):
    main(["mine.yaml", "method.pfedmoap.experts=3"])
    with pytest.raises(UserError, match=r"method\.promptfl\.mu \(was 0\.0, is 1\.0\)"):
        main(["mine.yaml", "method.promptfl.mu=1"])


def test_a_run_that_is_no_part_of_a_comparison_is_refused(here: Path):
    written = summary(PFEDMMA)
    del written["config"]
    Path("runs/compare/mine", PFEDMMA, "summary.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="is no part of a comparison; choose another --out"):
        main(["mine.yaml"])


# What has not been done.


def test_dry_run_says_what_would_be_started(here: Path, capsys: pytest.CaptureFixture[str]):
    main(["mine.yaml", "--dry-run", "--out", "new", "--ranks", "2", "seed=4"])
    lines = capsys.readouterr().out.splitlines()
    launcher = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2 -m pfedmma.train"
    assert lines == [f"{launcher} --config new/plans/{name}.yaml resume=auto" for name in (PFEDMMA, PROMPTFL)]
    assert [path.name for path in Path("new").iterdir()] == ["plans"]
    plan = configuration.load(f"new/plans/{PROMPTFL}.yaml")
    assert (plan.method.name, plan.seed, plan.run_dir) == ("promptfl", 4, f"new/{PROMPTFL}")
    Path("runs/compare/mine", PFEDMMA, "summary.json").unlink()
    main(["mine.yaml", "--dry-run"])
    assert capsys.readouterr().out == f"{sys.executable} -m pfedmma.train --config runs/compare/mine/plans/{PFEDMMA}.yaml resume=auto\n"


def test_table_only_shows_what_is_done(here: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match="none of the runs is finished yet; leave --table-only out"):
        main(["mine.yaml", "--table-only", "--out", "new"])
    assert not Path("new").exists()
    Path("runs/compare/mine", PFEDMMA, "summary.json").unlink()
    main(["mine.yaml", "--table-only"])
    assert list(runs_csv()) == ["promptfl"] and "pfedmma" not in capsys.readouterr().out.split("tables and figures")[0].replace(
        "pfedmma[", ""
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no compare file is given"),
        (["seed=1"], "no compare file is given"),
        (["mine.yaml", "--jobs", "0"], "--jobs: '0' is no whole number from 1 on"),
    ],
)
def test_bad_arguments(here: Path, arguments: list[str], says: str):
    with pytest.raises(UserError, match=says):
        main(arguments)


# What goes wrong.


def test_an_interruption_leaves_no_process_and_the_same_command_completes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    children = []

    def popen(*args: Any, **options: Any) -> subprocess.Popen:
        children.append(POPEN(*args, **options))
        return children[-1]

    def interrupt(seconds: float, wait=time.sleep) -> None:
        patch.setattr(time, "sleep", wait)  # once: ending a process sleeps as well
        raise KeyboardInterrupt

    compare_file(Path("again.yaml"), methods=["promptfl", "local"])
    monkeypatch.setattr(subprocess, "Popen", popen)
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt, match="the same command goes on with what is not done"):
            main(["again.yaml"])
    assert capsys.readouterr().out.splitlines()[-1] == "interrupted: ending 1 run"
    (child,) = children
    assert child.returncode is not None and child.returncode < 0  # ended by a signal, and waited for
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)  # nor is anything left of its session
    assert not Path("runs/compare/again/runs.csv").exists()
    monkeypatch.setattr(Inside, "started", [])
    monkeypatch.setattr(subprocess, "Popen", Inside)
    main(["again.yaml"])
    assert Inside.started == [RUN.format("promptfl"), RUN.format("local")]
    assert list(runs_csv("runs/compare/again")) == ["promptfl", "local"]
    # The numbers are those of the run that nobody interrupted.
    assert summary(PROMPTFL, "runs/compare/again")["accuracy"] == summary(PROMPTFL)["accuracy"]


def test_a_failing_run_is_reported_and_the_others_are_done(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    compare_file(Path("bad.yaml"), methods={"wild": {"method.name": "pfedmma", "optimizer.lr": 1e30}, "zeroshot": {}})
    monkeypatch.setattr(subprocess, "Popen", Forked)
    with pytest.raises(UserError) as caught:
        main(["bad.yaml"])
    reason = str(caught.value)
    assert reason.startswith(f"1 of 2 runs failed; the first is {RUN.format('wild')}: failed with status 2: error: ")
    assert "optimizer.lr" in reason and f"plans/{RUN.format('wild')}.log" in reason and reason.endswith("the same command tries them again")
    out = capsys.readouterr().out
    assert f"[1/2] {RUN.format('wild')}: failed with status 2: error: " in out and f"[2/2] {RUN.format('zeroshot')}: HM " in out
    assert list(runs_csv("runs/compare/bad")) == ["zeroshot"]
    log = f"runs/compare/bad/plans/{RUN.format('wild')}.log"
    for text in (out, Path("runs/compare/bad/table.md").read_text()):
        assert "wild, seed 0: failed" in text and f"failed: {RUN.format('wild')}: failed with status 2: error: " in text and log in text
    main(["bad.yaml", "--table-only"])  # as its log says
    out = capsys.readouterr().out
    assert "wild, seed 0: failed" in out and f"failed: {RUN.format('wild')}: failed: error: " in out and f"(see {log})" in out


def test_a_run_that_was_asked_to_end_is_no_finished_one(here: Path, monkeypatch: pytest.MonkeyPatch):
    """A signal lets a run end well, after a round that need not be its last."""
    compare_file(Path("asked.yaml"), methods=["local"])
    monkeypatch.setattr(subprocess, "Popen", POPEN)
    monkeypatch.setattr(schedule, "command", lambda plan, ranks: [sys.executable, "-c", ""])
    with pytest.raises(UserError, match=r"1 of 1 runs failed; .*: interrupted; the same command goes on with it"):
        main(["asked.yaml"])


def test_failing_runs_are_tried_again(started: list[str]):
    compare_file(Path("bad.yaml"), methods={"wild": {"method.name": "pfedmma", "optimizer.lr": 1e30}})
    for count in (1, 2):
        with pytest.raises(UserError, match=r"1 of 1 runs failed; .* error: "):
            main(["bad.yaml"])
        assert len(started) == count
        text = Path("runs/compare/bad/plans", f"{RUN.format('wild')}.log").read_text()
        assert text.count(run_log.BEGINS) == text.count("\nerror: ") == count  # nothing is lost of what earlier attempts said
    assert not Path("runs/compare/bad/runs.csv").exists()


def test_what_is_chosen_on_the_validation_split_is_trained_again_and_tested(started: list[str]):
    compare_file(Path("choose.yaml"), methods=["pfedmma"], grid={"optimizer.lr": [1e-6, 0.05]}, select="val")
    main(["choose.yaml"])
    names = [f"caltech101-2-shot-pfedmma-optimizer.lr-{lr}-seed0" for lr in ("1e-06", "0.05")]
    candidates = [summary(name, "runs/compare/choose/candidates") for name in names]
    best = max(range(2), key=lambda k: candidates[k]["accuracy"]["hm"])
    assert started == [*names, names[best]] and {made["split"] for made in candidates} == {"val"}
    tested = summary(names[best], "runs/compare/choose")
    assert tested["split"] == "test" and float(runs_csv("runs/compare/choose")["pfedmma"]["hm_percent"]) == tested["accuracy"]["hm"]
    # It is the same training: what is tested on has no part in it.
    losses = [[row["loss"] for row in small.metrics(Path("runs/compare/choose", where, names[best]))] for where in ("", "candidates")]
    assert losses[0] == losses[1]


# Slots.


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("jobs", "ranks", "threads"), [(1, 1, 16), (2, 1, 8), (3, 2, 2), (1, 4, 4), (40, 1, 1)])
@pytest.mark.usefixtures("cores")
def test_a_process_gets_its_share_of_the_cores(jobs: int, ranks: int, threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedule, "visible_gpus", lambda: [])
    environment = Slots(jobs, ranks).environment(0)
    assert environment["OMP_NUM_THREADS"] == str(threads)
    assert "CUDA_VISIBLE_DEVICES" not in environment
    assert "OMP_NUM_THREADS" not in os.environ  # this program's own is left alone
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Slots(jobs, ranks).environment(0)["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(
    ("jobs", "gpus", "shares"),
    [
        (1, "0123", [None]),
        (2, "0123", ["0,2", "1,3"]),
        (3, "0123", ["0,3", "1", "2"]),
        (4, "57", ["5", "7", "5", "7"]),
        (2, "", [None, None]),
    ],
)
@pytest.mark.usefixtures("cores")
def test_a_run_gets_its_share_of_the_gpus(jobs: int, gpus: str, shares: list[str | None], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedule, "visible_gpus", lambda: list(gpus))
    assert [Slots(jobs, 1).environment(slot).get("CUDA_VISIBLE_DEVICES") for slot in range(jobs)] == shares


@pytest.mark.usefixtures("cores")
def test_the_gpus_are_those_that_this_program_sees(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schedule.torch.cuda, "device_count", lambda: 3)
    assert schedule.visible_gpus() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    assert schedule.visible_gpus() == ["4", "GPU-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert schedule.visible_gpus() == []
