"""Trackers are told every round once, whatever happens to the run, and nothing that happens to them stops it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import TensorBoardTracker

from pfedmma.config import schema
from pfedmma.records import trackers
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small
from tests.support.reported import accuracy, diagnosed, round_row
from tests.support.tracked import curves, losses, near

pytest.importorskip("tensorboard")


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch)


# TensorBoard.


def test_a_tracker_that_comes_later_is_told_what_it_missed(tmp_path: Path) -> None:
    plain, tracked = tmp_path / "plain", tmp_path / "tracked"
    main(small.settings(tracked))
    main(small.settings(tracked, "federation.rounds=3", "resume=auto", "trackers=tensorboard"))  # another setting, the same run
    assert curves(tracked)["loss"] == near(losses(tracked)) and len(losses(tracked)) == 3
    main(small.settings(tracked, "federation.rounds=4", "resume=auto"))
    main(small.settings(tracked, "federation.rounds=5", "resume=auto", "trackers=tensorboard"))
    assert curves(tracked)["loss"] == near(losses(tracked)) and len(losses(tracked)) == 5
    # Who is told changes nothing else.
    main(small.settings(plain, "federation.rounds=5"))
    assert small.timeless(small.metrics(tracked)) == small.timeless(small.metrics(plain))
    assert small.summary(tracked)["config"] == small.summary(plain)["config"]


def test_curves_of_diagnostics_but_not_of_each_client() -> None:
    each = {"clients": list(range(100)), "local": [50.0] * 100}
    told = trackers.curves(round_row(3, evaluated=accuracy(70.0) | diagnosed(0.5, None), per_client=each), sent=1.0)
    assert told["accuracy/diagnostics/alignment_margin"] == 0.5 and told["accuracy/local"] == 70.0
    assert len(told) < 40 and not [name for name in told if "client" in name or "cka" in name]


def test_a_round_of_nobody_is_told_once(tmp_path: Path) -> None:
    """Round 4 has no participant and so no loss; a run that goes on after it has not forgotten that it was told."""
    run, settings = tmp_path / "run", ["trackers=tensorboard", "federation.sampling=poisson", "federation.participation=0.2"]
    settings += ["federation.dropout=0.4", "federation.speeds=0.5", "resume=auto"]
    for rounds in (4, 5):
        main(small.settings(run, f"federation.rounds={rounds}", *settings))
    rows, told = small.metrics(run), curves(run)
    assert [row["clients"] for row in rows] == [[3], [2], [3, 4, 6], [], [2, 5, 6]]
    assert told["loss"] == near([(n, loss) for n, loss in losses(run) if loss is not None]) and len(told["loss"]) == 4
    assert told["simulated_seconds"] == near([(row["round"], row["simulated_seconds"]) for row in rows])
    assert told["lost/failed"] == near([(row["round"], len(row["lost"]["failed"])) for row in rows])
    assert told["comm/wasted_bytes"] == near([(row["round"], row["comm"]["wasted_bytes"]) for row in rows])


def test_a_finished_run_that_is_resumed_says_its_result_once(tmp_path: Path) -> None:
    for more in ([], ["resume=auto"], ["resume=auto", "federation.rounds=3"]):
        main(small.settings(tmp_path / "run", "trackers=tensorboard", "evaluation.every=2", *more))
    assert [round_ for round_, _ in curves(tmp_path / "run")["final/hm"]] == [2, 3]


def test_a_tracker_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = TensorBoardTracker.log

    def log(self: TensorBoardTracker, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        if step in (2, 3):
            raise ConnectionError("the service\nis down")
        real(self, values, step, **more)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TensorBoardTracker, "log", log)
        main(small.settings(run, "trackers=tensorboard", "federation.rounds=4"))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == ["warning: trackers: tensorboard failed (ConnectionError: the service is down); the run goes on without it"]
    assert len(small.metrics(run)) == small.summary(run)["rounds"] == 4
    assert [round_ for round_, _ in curves(run)["loss"]] == [1]
    main(small.settings(run, "trackers=tensorboard", "federation.rounds=5", "resume=auto"))
    assert curves(run)["loss"] == near(losses(run)) and len(losses(run)) == 5


def test_a_tracker_that_cannot_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(self: TensorBoardTracker) -> None:
        raise RuntimeError("no account")

    monkeypatch.setattr(TensorBoardTracker, "start", start, raising=False)
    main(small.settings(tmp_path / "run", "trackers=tensorboard"))
    assert capsys.readouterr().err.count("warning: trackers: tensorboard failed (RuntimeError: no account)") == 1
    assert small.summary(tmp_path / "run")["rounds"] == 2


# Settings.


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("tensorboard", ("tensorboard",)),
        ("[tensorboard,wandb]", ("tensorboard", "wandb")),
        ("tensorboard, mlflow", ("tensorboard", "mlflow")),
        ("[]", ()),
        ("", ()),
    ],
)
def test_trackers_are_a_list_or_a_name(tmp_path: Path, text: str, chosen: tuple[str, ...]) -> None:
    assert schema.load(None, [f"trackers={text}"]).trackers == chosen
    (tmp_path / "settings.yaml").write_text(f"trackers: {text}\n")
    read = schema.load(tmp_path / "settings.yaml")
    assert read.trackers == chosen
    (tmp_path / "again.yaml").write_text(schema.dump(read))
    assert schema.load(tmp_path / "again.yaml") == read


def test_an_unknown_tracker_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"trackers: 'tensorbord' is not known; choose one of tensorboard, wandb, mlflow"):
        schema.load(None, ["trackers=[tensorbord]"])
    with pytest.raises(UserError, match="trackers: a list is expected, not '3'"):
        schema.load(None, ["trackers=3"])


def test_a_package_that_is_not_there_ends_the_run_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "mlflow" else real(name, *more))
    with pytest.raises(UserError, match=r"trackers: mlflow is not installed here; pip install mlflow"):
        main(small.settings(tmp_path / "run", "trackers=[tensorboard,mlflow]"))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_a_tracker_s_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb_left_this").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="wandb_left_this is not installed"):
        trackers.require(["wandb_left_this"])


# Weights & Biases.


class FakeServer:
    """Stands for wandb with its server: runs by id, each a list of (step, values), of which steps must ascend."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.asked: list[dict[str, Any]] = []
        self.config = types.SimpleNamespace(update=lambda values, **_: self.settings.update(values))
        self.settings: dict[str, Any] = {}

    def init(self, **options: Any) -> Any:
        self.asked.append(options)
        rows = self.runs.setdefault(options["id"], [])
        return types.SimpleNamespace(id=options["id"], step=rows[-1][0] + 1 if rows else 0, log=self.log(rows), finish=lambda: None)

    @staticmethod
    def log(rows: list[tuple[int, dict[str, float]]]) -> Any:
        def log(values: dict[str, float], step: int) -> None:
            if rows and rows[-1][0] == step:
                rows[-1][1].update(values)
            else:
                assert not rows or step > rows[-1][0], "wandb would throw this away"
                rows.append((step, dict(values)))

        return log


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    fake, module = FakeServer(), types.ModuleType("wandb")
    spec = importlib.machinery.ModuleSpec("wandb", None, origin="here")
    spec.has_location = True
    module.__spec__, module.init, module.config = spec, fake.init, fake.config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    return fake


def test_wandb_s_server_is_told_each_round_once(tmp_path: Path, server: FakeServer) -> None:
    run = tmp_path / "run"
    common = ["trackers=wandb", "checkpoint.every=2"]
    main(small.settings(run, *common, "federation.rounds=3"))
    newest = run / "checkpoints" / "round-000003"
    newest.rename(tmp_path / "lost")  # round 3 is done again
    main(small.settings(run, *common, "federation.rounds=5", "resume=auto"))
    ((run_id, rows),) = server.runs.items()
    assert [(step, values["loss"]) for step, values in rows] == losses(run) and len(rows) == 5
    first, second = server.asked
    assert first == second == {"project": "pfedmma", "dir": str(run / "trackers"), "name": "run", "id": run_id, "resume": "allow"}
    assert server.settings["optimizer.lr"] == 0.01


def test_wandb_s_own_variables_take_precedence(tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_NAME", "seventh")
    main(small.settings(tmp_path / "run", "trackers=wandb", "federation.rounds=1"))
    (asked,) = server.asked
    assert asked["project"] == "mine" and not {"dir", "name"} & asked.keys()


def records(file: Path) -> list[bytes]:
    """The records of a wandb file: after 7 bytes, blocks of 32 KiB; before each part of one its checksum, length and kind."""
    content, position, found, part = file.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if kind == 0:
            break
        part += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            found.append(part)
            part = b""
    return found


def test_wandb_offline_holds_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    main(small.settings(run, "trackers=wandb", "evaluation.every=2"))
    main(small.settings(run, "trackers=wandb", "evaluation.every=2", "federation.rounds=3", "resume=auto"))
    files = sorted((run / "trackers" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {file.stem for file in files} == {f"run-{json.loads((run / 'trackers' / 'ids.json').read_text())['wandb']}"}
    rows = []
    for content in records(files[-1]):
        record = Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item})
    assert [(row["_step"], row["loss"]) for row in rows] == losses(run) and len(rows) == 3
    assert rows[-1]["final/base"] == small.summary(run)["accuracy"]["base"]


# MLflow.


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "a run"
    common = ["trackers=mlflow", "checkpoint.every=2", "evaluation.every=3"]
    main(small.settings(run, *common, "federation.rounds=3"))
    (run / "checkpoints" / "round-000003").rename(tmp_path / "lost")
    main(small.settings(run, *common, "federation.rounds=4", "resume=auto"))
    assert not os.environ.get("MLFLOW_TRACKING_URI")
    client = mlflow.MlflowClient(f"sqlite:///{run / 'trackers' / 'mlflow' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'pfedmma'")
    (found,) = client.search_runs([experiment.experiment_id])
    history = {tag: [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, tag)] for tag in ("loss", "final/base")}
    assert sorted(history["loss"]) == losses(run) and len(losses(run)) == 4
    assert sorted(step for step, _ in history["final/base"]) == [3, 4]
    assert found.data.params["data.clients"] == "7" and found.info.status == "FINISHED"
    assert not (tmp_path / "mlruns").exists() and not (tmp_path / "mlflow.db").exists()


def test_mlflow_s_own_server_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'ours.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "group")
    main(small.settings(tmp_path / "run", "trackers=mlflow", "federation.rounds=1"))
    assert mlflow.MlflowClient(uri).search_experiments(filter_string="name = 'group'")
    assert not (tmp_path / "run" / "trackers" / "mlflow").exists()
