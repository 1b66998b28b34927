"""``pfedmma.run``, ``pfedmma.compare`` and ``pfedmma.load_run``: what the commands do, with results as arrays."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import pfedmma
from pfedmma.api import Comparison, FinishedRun
from pfedmma.compare import figures
from pfedmma.config import schema
from pfedmma.records.folder import RunFolder
from pfedmma.system.errors import UserError
from tests.support import inside, reported, small

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in small.SETTINGS)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run of two rounds, tested at the end on few images."""
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        folder = tmp_path_factory.mktemp("api") / "mine"
        return pfedmma.run("shapes", method="fedavg_mma", **{**SETTINGS, "evaluation.every": 2}, run_dir=folder)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two widths."""
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        inside.do_runs_here(patch)
        patch.setattr(figures, "draw", lambda runs, out, radar=False: None)
        asked = {"settings": {**SETTINGS, "evaluation.every": 1}, "methods": ["pfedmma"], "seeds": [1]}
        folder = tmp_path_factory.mktemp("comparison")
        return pfedmma.compare(asked, out=folder, rounds=1, method__dim=[4, 8])


def test_a_run_is_what_the_command_leaves(made: FinishedRun) -> None:
    summary, rows = small.summary(made.folder), small.metrics(made.folder)
    assert made.folder.name == "mine"
    assert made.settings == summary["config"] and made.settings["method.name"] == "fedavg_mma"
    assert made.summary is not None and made.summary.to_json() == summary
    assert made.accuracy["local"] == summary["accuracy"]["local"] and made.zero_shot["hm"] == summary["zero_shot"]["hm"]
    assert repr(made).startswith("<fedavg_mma on shapes, 2 rounds, HM ")
    assert made.metrics["loss"].tolist() == [row["loss"] for row in rows]


def test_metrics_are_arrays_of_rounds(made: FinishedRun) -> None:
    metrics = made.metrics
    assert metrics["round"].dtype == np.int64 and metrics["round"].tolist() == [1, 2]
    assert metrics["participants_per_round"].tolist() == [3, 3]  # 0.4 of 7
    assert np.isnan(metrics["local_percent"][0]) and metrics["local_percent"][1] == made.accuracy["local"]
    sent = [row.comm.uplink_bytes for row in made.rounds]
    assert metrics["uplink_bytes_per_round"].tolist() == sent == [3 * 4 * made.summary.shared_parameters] * 2  # type: ignore[union-attr]
    assert (metrics["train_seconds"] > 0).all() and metrics.rows == 2


def test_clients_are_arrays_of_clients(made: FinishedRun) -> None:
    clients = made.clients
    wanted = small.summary(made.folder)["per_client"]
    assert clients["client"].tolist() == list(range(7))
    assert clients["local_percent"].tolist() == [row["local"] for row in wanted]
    assert clients["zero_shot_base_percent"].tolist() == [row["zero_shot"]["base"] for row in wanted]
    assert list(clients["classes"][6]) == wanted[6]["classes"] and clients["training_images_per_client"].tolist() == [18] * 6 + [12]


def test_every_column_is_explained(made: FinishedRun, compared: Comparison) -> None:
    """On the page of the calls, or among the columns of the CSV files; and what the page names is there."""
    page = (ROOT / "pfedmma" / "api" / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page[page.index("| column |") :].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    known = {*made.metrics, *made.clients}
    assert named <= known | {"local_std_percent"}
    rest = known - named - {name for name in known if name.endswith(("_percent", "_seconds"))}
    assert rest == set()
    settings = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in settings for name in {*compared.runs} if not name.endswith("_percent"))


def test_the_same_call_again_trains_nothing(made: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch)
    before = (made.folder / "metrics.jsonl").read_bytes()
    again = pfedmma.run("shapes", method="fedavg_mma", **{**SETTINGS, "evaluation.every": 2}, run_dir=made.folder)
    assert again.accuracy == made.accuracy and (made.folder / "metrics.jsonl").read_bytes() == before
    with pytest.raises(UserError, match=r"another configuration: .*method\.dim"):
        pfedmma.run("shapes", method="fedavg_mma", **{**SETTINGS, "evaluation.every": 2}, run_dir=made.folder, dim=8)
    with pytest.raises(UserError, match="already holds a run"):
        pfedmma.run(resume="", run_dir=made.folder)


def test_a_client_is_exported(made: FinishedRun, tmp_path: Path) -> None:
    clip = schema_clip()
    model = pfedmma.load_client(clip, made.export(3, tmp_path / "client3.safetensors"))
    assert model.classifier(["red circle", "blue star"]) is not None
    assert [path.name for path in made.export_all(tmp_path / "all")] == [f"client{client}.safetensors" for client in range(7)]
    with pytest.raises(UserError, match=r"clients 0 \.\. 6, not 7"):
        made.export(7, tmp_path / "none.safetensors")


def schema_clip():
    from pfedmma.clip import loading

    return loading.create_model(schema.load(None, ["backbone.pretrained=none"]).backbone, 0)


def test_several_ranks_are_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"torchrun -m pfedmma\.train"):
        pfedmma.run()


def test_a_run_that_goes_on_is_read_as_far_as_it_is(made: FinishedRun, tmp_path: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).write_bytes((made.folder / name).read_bytes())
    part = pfedmma.load_run(tmp_path)
    assert part.summary is None and part.metrics["round"].tolist() == [1, 2] and part.clients.rows == 0
    assert part.settings == made.settings and part.accuracy == part.zero_shot == {}


def test_a_run_of_code_that_is_not_here_is_read(tmp_path: Path) -> None:
    """Settings of a finished run stand in its summary: its plugins are not imported."""
    made = reported.summary()
    reported.write_run(tmp_path, made | {"config": made["config"] | {"plugins": ["gone.py"], "method.name": "gone"}})
    assert pfedmma.load_run(str(tmp_path)).settings["method.name"] == "gone"
    with pytest.raises(UserError, match="holds no run"):
        pfedmma.load_run(tmp_path / "none")


def test_a_comparison_has_a_row_for_each_run(compared: Comparison) -> None:
    runs, table = compared.runs, compared.table
    assert runs["seed"].tolist() == [1, 1] and runs["method.dim"].tolist() == [4, 8] and table["seeds"].tolist() == [1, 1]
    assert runs["trained_parameters_per_client"][0] < runs["trained_parameters_per_client"][1]
    assert table["hm_percent_mean"].tolist() == runs["hm_percent"].tolist() and np.isnan(table["hm_percent_std"]).all()
    for name in runs["run"]:
        assert pfedmma.load_run(compared.folder / name).settings["federation.rounds"] == 1
    assert repr(compared) == f"<comparison of 2 runs: {compared.folder}>"


def test_it_is_the_table_that_the_command_writes(compared: Comparison) -> None:
    with open(compared.folder / "runs.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(compared.runs) == list(lines[0]) and [line["run"] for line in lines] == compared.runs["run"].tolist()
    assert yaml.safe_load((compared.folder / "compare.yaml").read_text())["methods"] == ["pfedmma"]


def test_a_mapping_needs_a_folder() -> None:
    with pytest.raises(UserError, match="out='runs/compare/mine'"):
        pfedmma.compare({"methods": ["pfedmma"]})
    with pytest.raises(UserError, match="did you mean embedded"):
        pfedmma.compare("embeded")


def test_rooms_stay_rooms() -> None:
    """``pfedmma.run`` and ``pfedmma.compare`` are modules that can be called, whatever was imported first; importing is light."""
    program = (
        "import pfedmma, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "import pfedmma.compare, pfedmma.run; assert 'torch' not in sys.modules\n"
        "assert callable(pfedmma.run) and callable(pfedmma.compare) and callable(getattr(pfedmma, 'run'))\n"
        "assert {'run', 'compare', 'load_run', 'load_client'} <= set(pfedmma.__all__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert RunFolder("x").path == Path("x")
