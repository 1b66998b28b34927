"""The command line: what a run leaves behind, and how bad input ends."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from pfedmma.config import schema
from pfedmma.data.partition.base_to_novel import split_classes
from pfedmma.engine.batches import Batch, Batches, StagedBatch
from pfedmma.engine.local import LocalTraining
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small
from tests.support.programs import python

# What a run leaves behind.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 rounds, evaluated after the second and the last."""
    folder = tmp_path_factory.mktemp("finished")
    images = folder / "images"
    small.write_caltech(images)
    main(small.settings(folder / "run", *caltech(images), "federation.rounds=3", "evaluation.every=2"))
    return folder / "run"


def caltech(root: Path) -> list[str]:
    """Settings for the few pictures below ``root``: 4 classes, so 2 base classes for 2 clients."""
    return ["data.name=caltech101", f"data.root={root}", "data.clients=2", "federation.participation=1"]


def test_the_run_folder_holds_what_the_contract_names(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints"}


def test_metrics_have_the_keys_of_the_contract(finished: Path) -> None:
    rows = small.metrics(finished)
    assert [row["round"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert {"round", "clients", "samples", "loss", "seconds", "comm", "accuracy"} <= row.keys()
        assert {"train", "exchange", "evaluate", "total"} <= row["seconds"].keys()
        numbers = "shared_parameters payload_bytes uplink_bytes downlink_bytes ring_bytes_per_rank collectives time_us"
        assert set(numbers.split()) <= row["comm"].keys()
        assert (row["clients"], row["samples"]) == ([0, 1], 4)  # two clients with one class of 2 shots each
        assert math.isfinite(row["loss"])
    assert [row["accuracy"] is None for row in rows] == [True, False, False]
    assert {"local", "base", "novel", "hm"} <= rows[1]["accuracy"].keys()


def test_the_summary_has_the_keys_of_the_contract(finished: Path) -> None:
    summary = small.summary(finished)
    names = "method dataset backbone world_size accuracy zero_shot per_client comm throughput versions"
    assert set(names.split()) <= summary.keys()
    assert (summary["method"], summary["dataset"], summary["backbone"], summary["world_size"]) == ("pfedmma", "caltech101", "tiny", 1)
    for part in (summary["accuracy"], summary["zero_shot"]):
        assert {"local", "base", "novel", "hm"} <= part.keys()
        assert all(0.0 <= part[name] <= 100.0 for name in ("local", "base", "novel", "hm"))
    assert summary["accuracy"] == small.metrics(finished)[-1]["accuracy"]
    for number, client in enumerate(summary["per_client"]):
        assert {"id", "classes", "train_samples", "test_samples", "local", "base", "novel"} <= client.keys()
        assert (client["id"], client["train_samples"], client["test_samples"]) == (number, 2, 2)
    held = [name for client in summary["per_client"] for name in client["classes"]]
    assert sorted(held) == ["accordion", "airplane"]  # the base half of the four, each held once
    for name in ("local", "base", "novel"):
        each = [client[name] for client in summary["per_client"]]
        assert sum(each) / len(each) == pytest.approx(summary["accuracy"][name])


def test_the_comm_totals_add_up(finished: Path) -> None:
    rows, totals = small.metrics(finished), small.summary(finished)["comm"]
    for name in ("payload_bytes", "uplink_bytes", "downlink_bytes", "ring_bytes_per_rank", "collectives"):
        assert totals[name] == sum(row["comm"][name] for row in rows)


def test_the_summary_is_strict_json(finished: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for text in [(finished / "summary.json").read_text(), *(finished / "metrics.jsonl").read_text().splitlines()]:
        json.loads(text, parse_constant=refuse)


def test_the_resolved_config_reads_back_to_itself(finished: Path) -> None:
    settings = small.settings(finished, *caltech(finished.parent / "images"), "federation.rounds=3", "evaluation.every=2")
    assert schema.load(finished / "config.yaml") == schema.load(None, settings)


def test_the_same_config_file_gives_the_same_run(finished: Path, tmp_path: Path) -> None:
    main(["--config", str(finished / "config.yaml"), f"run_dir={tmp_path / 'again'}"])
    assert small.timeless(small.metrics(tmp_path / "again")) == small.timeless(small.metrics(finished))


def test_the_command_line_takes_precedence_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("seed: 5\nfederation:\n  rounds: 9\n")
    main(["--config", str(file), *small.settings(tmp_path / "run", "federation.rounds=1")])
    assert len(small.metrics(tmp_path / "run")) == 1
    assert schema.load(tmp_path / "run" / "config.yaml").seed == 5


# How bad input ends: a UserError before anything is written.


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight training images of each drawn class."""
    small.few_images(monkeypatch, train=8)


BAD_SETTINGS = {
    "unknown key": (["federation.round=3"], r"unknown setting 'federation.round'.*federation\.rounds"),
    "no key at all": (["go"], "'go' is no setting; write key=value"),
    "wrong type": (["federation.rounds=ten"], r"federation\.rounds: a whole number is expected, not 'ten'"),
    "out of range": (["federation.participation=1.5"], r"federation\.participation: .* at most 1, not 1\.5"),
    "unknown data set": (["data.name=mnist"], r"data\.name: 'mnist' is not known; choose one of shapes"),
    "unknown protocol": (["data.protocol=random"], r"data\.protocol: 'random' is not known; choose one of base_to_novel"),
    "unknown method": (["method.name=fedprox2"], r"method\.name: 'fedprox2' is not known; choose one of .*pfedmma"),
    "unknown backbone": (["backbone.name=ViT-B-17"], r"backbone\.name: 'ViT-B-17'.*ViT-B-16"),
    "unknown weights": (["backbone.name=ViT-B-32", "backbone.pretrained=openay"], r"backbone\.pretrained: 'openay'.*openai"),
    "weights file missing": (["backbone.pretrained=absent.safetensors"], r"backbone\.pretrained: there is no file 'absent"),
    "config file missing": (["--config", "absent.yaml"], r"cannot read the config file absent\.yaml: No such file"),
    "data root missing": (["data.name=caltech101", "data.root=absent"], r"data\.root: there is no folder 'absent'"),
    "data root not given": (["data.name=caltech101"], r"data\.root: .* give the folder that holds caltech-101/"),
    "more clients than classes": (["data.clients=61"], r"data\.clients: 60 base classes .*61 clients.*data\.clients=\d+ works"),
    "too many clients for runs of two classes": (["data.clients=31"], r"data\.clients: .*data\.clients=\d+ works"),
    "more shots than images": (["data.shots=9"], r"data\.shots: class '.*' has 8 training images, fewer than 9 shots"),
    "more blocks than the tower has": (["method.blocks=7"], r"method\.blocks: tiny has only 6 blocks"),
}


@pytest.mark.parametrize(("settings", "says"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
@pytest.mark.usefixtures("few_images")
def test_bad_input_names_what_is_wrong_and_leaves_no_run(tmp_path: Path, settings: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        main(small.settings(tmp_path / "run", *settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("clients", [31, 40, 61, 1000])
def test_the_number_of_clients_that_is_proposed_works(clients: int) -> None:
    # 60 base classes: 31 clients get runs of round(60/31) = 2 and the last one none, and so on.
    with pytest.raises(UserError) as error:
        split_classes(60, clients)
    proposed = int(re.search(r"data\.clients=(\d+) works", str(error.value))[1])
    assert all(len(classes) > 0 for classes in split_classes(60, proposed))


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    main(small.settings(tmp_path / "run", "federation.rounds=1"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already holds a run; set resume=auto to go on with it, or choose another run_dir"):
        main(small.settings(tmp_path / "run", "federation.rounds=1"))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_resume_of_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent holds no run .*give the run_dir of a run"):
        main([f"resume={tmp_path / 'absent'}"])
    assert not (tmp_path / "absent").exists()


def test_resume_auto_starts_where_there_is_nothing(tmp_path: Path) -> None:
    main(small.settings(tmp_path / "run", "federation.rounds=1", "resume=auto"))
    assert [row["round"] for row in small.metrics(tmp_path / "run")] == [1]


def test_a_run_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match=r"run_dir: .* is a file"):
        main(small.settings(tmp_path / "run"))
    with pytest.raises(UserError, match="run_dir: cannot write to"):
        main(small.settings(tmp_path / "run" / "below"))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_data_root_of_another_layout_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "images" / "holiday").mkdir(parents=True)
    with pytest.raises(UserError, match=r"looked for caltech-101/split_zhou_Caltech101\.json .* holds holiday"):
        main(small.settings(tmp_path / "run", *caltech(tmp_path / "images")))
    assert not (tmp_path / "run").exists()


def test_a_picture_that_the_split_lists_and_nobody_has(tmp_path: Path) -> None:
    images = small.write_caltech(tmp_path / "images")
    (images / "airplane" / "image_0002.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 8 images .* are missing, first .*airplane/image_0002\.jpg"):
        main(small.settings(tmp_path / "run", *caltech(tmp_path / "images")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("broken", ["cut off", "no image", "empty"])
def test_an_unreadable_picture_is_named(tmp_path: Path, broken: str) -> None:
    images = small.write_caltech(tmp_path / "images")
    picture = images / "accordion" / "image_0001.jpg"
    content = {"cut off": picture.read_bytes()[:300], "no image": b"<html>404</html>", "empty": b""}[broken]
    picture.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the image .*accordion/image_0001\.jpg.*repair or replace"):
        main(small.settings(tmp_path / "run", *caltech(tmp_path / "images")))
    assert not (tmp_path / "run").exists(), "no round was finished: no half-written run is left, and the same command works afterwards"


def test_a_loss_that_is_not_finite_in_the_first_round(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss of client \d in round 1, batch 2 is (nan|inf).*optimizer\.lr"):
        main(small.settings(tmp_path / "run", "optimizer.lr=1e30"))
    assert not (tmp_path / "run").exists(), "no round was finished: no half-written run is left, and the same command works afterwards"


def test_a_loss_that_is_not_finite_names_client_round_and_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Clients 4, 5 and 6 are trained together in round 2; the second batch of client 5 turns bad.
    real_stage, real_on_device = Batches.stage, Batches.on_device
    marked: list[StagedBatch] = []

    def stage(self: Batches, stack, chosen, number: int, pixels: bool) -> StagedBatch:
        staged = real_stage(self, stack, chosen, number, pixels)
        if (stack.round, number) == (2, 1):
            marked.append(staged)
        return staged

    def on_device(self: Batches, clients, staged: StagedBatch, *more) -> Batch:
        result = real_on_device(self, clients, staged, *more)
        if any(staged is each for each in marked):
            row = [client.id for client in clients].index(5)
            result.images.unflatten(0, (len(clients), -1))[row] = torch.nan
        return result

    monkeypatch.setattr(Batches, "stage", stage)
    monkeypatch.setattr(Batches, "on_device", on_device)
    with pytest.raises(UserError, match="loss of client 5 in round 2, batch 2 is nan"):
        main(small.settings(tmp_path / "run", "federation.stems_gb=0"))  # batches are pixels
    assert [row["round"] for row in small.metrics(tmp_path / "run")] == [1]  # what was run stays


def test_a_client_that_diverges_in_its_last_batch_is_named_before_it_reaches_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One batch a client: every loss of round 1 is finite, but the last step of client 1 overflows. Averaged, its tensors would make
    # everyone's worthless, and round 2 would blame whichever client comes first.
    real = LocalTraining.step

    def step(self: LocalTraining, params: torch.Tensor, *args) -> torch.Tensor:
        losses = real(self, params, *args)
        params[0] = torch.inf  # round 1 trains clients 1, 2 and 5, in this order
        return losses

    monkeypatch.setattr(LocalTraining, "step", step)
    with pytest.raises(UserError, match=r"client 1 .*round 1"):
        main(small.settings(tmp_path / "run", "federation.rounds=1", "federation.batch_size=64"))


@pytest.mark.parametrize("name", ["run[red]", "run[/red]", "run [1]", "läuf {x} %s"])
def test_a_run_dir_may_have_any_name(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Square brackets are markup to rich, which prints the headline.
    main(small.settings(tmp_path / name, "federation.rounds=1"))
    assert len(small.metrics(tmp_path / name)) == 1
    assert capsys.readouterr().out.splitlines()[0].endswith(f"-> {tmp_path / name}")


# The same through the shell.


@pytest.mark.parametrize("case", ["unknown key", "unknown option", "unreadable picture"])
def test_the_program_ends_with_one_line_and_status_2(tmp_path: Path, case: str) -> None:
    images = small.write_caltech(tmp_path / "images")
    (images / "accordion" / "image_0001.jpg").write_bytes(b"")
    wrong = {
        "unknown key": ["federation.round=3"],
        "unknown option": ["--rounds", "3"],
        "unreadable picture": caltech(tmp_path / "images"),
    }[case]
    ended = python(["-m", "pfedmma.train", *small.settings(tmp_path / "run", *wrong)])
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    assert not (tmp_path / "run").exists()
