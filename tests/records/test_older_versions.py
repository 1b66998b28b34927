"""What an earlier version wrote is read and gone on with; what a later one wrote is refused, by its version, and left as it is.

`written_by_0_1_0` is what version 0.1.0 left behind, and the numbers here are what it went on to give. Summaries, metrics, reports and
tables of the same runs are tested in `test_rows`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import pfedmma
from pfedmma import evaluate, export, predict, train
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.config import schema
from pfedmma.config.identity import relevant
from pfedmma.data.loading import divide, open_source
from pfedmma.data.sources import shapes
from pfedmma.portable.client_file import load_client
from pfedmma.records.checkpoint import manifest, read
from pfedmma.system.errors import UserError
from pfedmma.version import VERSION
from tests.support import small
from tests.support.ranks import run_ranks
from tests.support.specimens import with_digest

OLD = Path(__file__).with_name("written_by_0_1_0")
CLIENT = 2
PIXELS = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class GoneOn(NamedTuple):
    """What 0.1.0 gave in round 3, and `pfedmma.evaluate` after it."""

    loss: float
    local: float
    base: float
    novel: float


RUNS = {
    "adapters": GoneOn(4.146046860027127, 61.5, 59.375, 60.083333),
    "pool": GoneOn(2.229094037786126, 59.833333, 58.375, 58.625),  # with the prompts of others, and momentum that persists
}


@pytest.fixture(params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(name: str, tmp_path: Path) -> Path:
    """A copy of a run that 0.1.0 left after round 2."""
    return Path(shutil.copytree(OLD / name, tmp_path / name))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 32), (200, 30, 30)).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Of an earlier version.


def train_on(run: Path, *more: str) -> None:
    """The run goes on, and is tested on few images at its end."""
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch, train=shapes.PER_CLASS["train"])
        train.main([f"resume={run}", *more])


def test_going_on_gives_what_0_1_0_gave(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main([f"resume={run}", "federation.rounds=3", "evaluation.every=0"])
    rows = small.metrics(run)
    assert rows[:2] == small.metrics(OLD / name), "what is recorded stays as it was written"
    assert (rows[2]["round"], rows[2]["clients"], rows[2]["samples"]) == (3, [1, 3], 30)
    assert rows[2]["loss"] == pytest.approx(RUNS[name].loss, rel=1e-4)  # another machine rounds differently
    totals = small.summary(run)["comm"]
    for key in ("payload_bytes", "uplink_bytes", "downlink_bytes", "collectives"):
        assert totals[key] == sum(row["comm"][key] for row in rows), "the ledger goes on, too"
    capsys.readouterr()
    evaluate.main([str(run)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["round"] == 3
    for column in ("local", "base", "novel"):
        assert result["accuracy"][column] == pytest.approx(getattr(RUNS[name], column), abs=0.2)


def test_its_clients_answer_as_they_did(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the server's prompt, where a new run's clients answer with their own: these were not kept. The user is told."""
    train_on(run, "federation.rounds=3")
    told = "clients of pfedmoap are tested with the server's tensors, not with their own last ones as today; it goes on so"
    assert (told in capsys.readouterr().err) == (name == "pool")
    progress = manifest.read_manifest(manifest.folder_of(run / "checkpoints", 3)).progress
    assert progress.answers == "server"
    found = read.newest_good(run / "checkpoints")
    assert found is not None
    tensors = small.final_tensors(run)
    answer = read.client_answer(run / "checkpoints", found, 1)  # of a participant of round 3
    sent = torch.cat([answer.tensors[tensor].flatten() for tensor in found.layout.exchange])
    assert torch.equal(sent, tensors["server.shared"])


def test_the_next_checkpoint_is_todays(name: str, run: Path) -> None:
    train_on(run, "federation.rounds=3", "checkpoint.keep=9")
    before, after = (manifest.read_manifest(manifest.folder_of(run / "checkpoints", round_)) for round_ in (2, 3))
    assert (before.format, after.format) == (manifest.EARLIER, manifest.FORMAT)
    assert before.layout == after.layout
    assert relevant(before.progress.config) == relevant(after.progress.config)
    train_on(run, "federation.rounds=4")
    assert [row["round"] for row in small.metrics(run)] == [1, 2, 3, 4]


def test_a_client_leaves_as_it_left_0_1_0(name: str, run: Path, tmp_path: Path) -> None:
    before = content(run)
    export.main([str(run), "--client", str(CLIENT), "--out", str(tmp_path / "client.safetensors")])
    got, wanted = load_file(tmp_path / "client.safetensors"), load_file(OLD / f"{name}-client2.safetensors")
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], tensor) for key, tensor in wanted.items())
    assert content(run) == before


def test_client_files_of_0_1_0(name: str, run: Path, tmp_path: Path) -> None:
    """They say what a file of the same client says that is written today."""
    export.main([str(run), "--client", str(CLIENT), "--out", str(tmp_path / "client.safetensors")])
    old, new = (load_client(own_clip(), path) for path in (OLD / f"{name}-client2.safetensors", tmp_path / "client.safetensors"))
    names = ("red circle", "blue star")
    assert torch.equal(old.classifier(names)(PIXELS), new.classifier(names)(PIXELS))
    assert (old.others is None) == (name == "adapters") and old.template == new.template == "a photo of a {}."


def test_adapter_files_of_0_1_0() -> None:
    model = pfedmma.load_adapter(own_clip(), OLD / "adapters-client2.safetensors")
    assert model.backbone_name == "tiny" and (model.spec.dim, model.spec.scale) == (2, 0.1)
    plain = own_clip().encode_image(PIXELS, normalize=True)
    assert not torch.allclose(model.encode_image(PIXELS, normalize=True), plain, atol=1e-3)


def own_clip() -> torch.nn.Module:
    """The backbone of the runs."""
    return create_model(BackboneConfig("tiny", "auto"), seed=0)


def test_a_run_of_0_1_0_answers(name: str, run: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict.main([str(run), "--client", str(CLIENT), "--json", "--classes", "own", "--top", "99", str(picture)])
    answer = json.loads(capsys.readouterr().out)
    held = small.summary(OLD / name)["per_client"][CLIENT]["classes"]
    assert answer["round"] == 2 and {row["class"] for row in answer["top"]} == set(held)


def test_a_partition_of_0_1_0() -> None:
    """It is that of the run beside it, as settings give it today."""
    settings = ["data.clients=4", "data.shots=1"]
    by_file = schema.load(None, [*settings, f"data.partition_file={OLD / 'partition.json'}"])
    source = open_source(by_file.data, by_file.seed, 32)
    read_back, drawn = (divide(source, config.data, config.seed, "test") for config in (by_file, schema.load(None, settings)))
    for one, other in zip(read_back.clients, drawn.clients, strict=True):
        assert (one.id, one.classes, one.domain) == (other.id, other.classes, other.domain)
        assert torch.equal(one.train, other.train) and torch.equal(one.labels, other.labels) and torch.equal(one.test, other.test)
    for which, images in drawn.sets().items():
        assert read_back.sets()[which].classes == images.classes and torch.equal(read_back.sets()[which].indices, images.indices)
    assert [len(c.train) for c in drawn.clients] == [c["train_samples"] for c in small.summary(OLD / "adapters")["per_client"]]


# Of a later version.


def make_later(run: Path, round_: int = 2) -> Path:
    """Let a checkpoint be one of version 9.9, whole, with nothing in it that this version knows."""
    folder = manifest.folder_of(run / "checkpoints", round_)
    (folder / "manifest.json").write_bytes(with_digest({"format": "pfedmma-checkpoint/3", "version": "9.9", "state": "elsewhere"}))
    return folder


def going_on(run: Path, picture: Path) -> None:
    train.main([f"resume={run}", "federation.rounds=3"])


def going_on_by_itself(run: Path, picture: Path) -> None:
    train.main(["--config", str(run / "config.yaml"), f"run_dir={run}", "resume=auto", "federation.rounds=3"])


COMMANDS: dict[str, Callable[[Path, Path], None]] = {
    "resume": going_on,
    "resume=auto": going_on_by_itself,
    "evaluate": lambda run, picture: evaluate.main([str(run)]),
    "export": lambda run, picture: export.main([str(run), "--client", "2", "--out", str(run.with_name("client.safetensors"))]),
    "predict": lambda run, picture: predict.main([str(run), "--client", "2", str(picture)]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["adapters"])
def test_a_checkpoint_of_a_later_version(command: str, run: Path, picture: Path) -> None:
    folder, before = make_later(run), content(run.parent)
    with pytest.raises(UserError) as refused:
        COMMANDS[command](run, picture)
    assert str(refused.value) == (
        f"the checkpoint {folder} is written by pfedmma 9.9 in the format 'pfedmma-checkpoint/3'; pfedmma {VERSION} reads "
        "pfedmma-checkpoint/1 and pfedmma-checkpoint/2: use the version that wrote it, or a later one"
    )
    assert content(run.parent) == before, "nothing is overwritten"


@pytest.fixture(scope="module")
def of_today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("today") / "run"
    train.main(small.settings(folder, "checkpoint.every=1", "checkpoint.keep=9", "data.clients=4"))
    return folder


@pytest.fixture
def two_checkpoints(of_today: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(of_today, tmp_path / "run"))


def test_an_older_checkpoint_is_no_substitute(two_checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two checkpoints the newer is of a later version: the run must not silently go back, and write over what that version did."""
    make_later(two_checkpoints)
    before = content(two_checkpoints)
    with pytest.raises(UserError, match=r"written by pfedmma 9\.9"):
        train.main([f"resume={two_checkpoints}", "federation.rounds=9"])
    assert content(two_checkpoints) == before
    assert "damaged" not in capsys.readouterr().err


def test_below_a_good_checkpoint_nobody_minds(two_checkpoints: Path) -> None:
    make_later(two_checkpoints, round_=1)
    found = read.newest_good(two_checkpoints / "checkpoints")
    assert found is not None and found.round == 2


def test_below_a_damaged_one_it_is_refused_all_the_same(two_checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_later(two_checkpoints, round_=1)
    (manifest.folder_of(two_checkpoints / "checkpoints", 2) / "manifest.json").write_text("{")
    with pytest.raises(manifest.LaterFormat, match=r"round-000001 is written by pfedmma 9\.9"):
        read.newest_good(two_checkpoints / "checkpoints")
    assert "the checkpoint of round 2 is damaged" in capsys.readouterr().err


def test_a_format_that_a_flipped_bit_makes_is_damage(two_checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The digest tells the two apart: then the checkpoint before is the right one."""
    file = manifest.folder_of(two_checkpoints / "checkpoints", 2) / "manifest.json"
    text = file.read_text()
    assert '"pfedmma-checkpoint/2"' in text
    file.write_text(text.replace('"pfedmma-checkpoint/2"', '"pfedmma-checkpoint/3"'))
    found = read.newest_good(two_checkpoints / "checkpoints")
    assert found is not None and found.round == 1
    assert "the checkpoint of round 2 is damaged (manifest.json does not have the digest" in capsys.readouterr().err


def go_on(meeting: list[str], run: str) -> None:
    train.main([f"resume={run}", "federation.rounds=9", *meeting])


def test_all_ranks_end(two_checkpoints: Path, tmp_path: Path) -> None:
    make_later(two_checkpoints)
    before = content(two_checkpoints)
    ended = run_ranks(tmp_path / "meet", 2, go_on, str(two_checkpoints))
    assert [rank.status for rank in ended] == [2, 2]
    assert "is written by pfedmma 9.9" in ended[0].stderr and "Traceback" not in ended[0].stderr + ended[1].stderr
    assert {name: data for name, data in content(two_checkpoints).items() if name != ".lock"} == before


@pytest.mark.parametrize("said", [{}, {"version": 7}, {"version": "\x1b[2J" * 99}])
def test_whatever_a_version_is_called(two_checkpoints: Path, said: dict[str, Any]) -> None:
    folder = manifest.folder_of(two_checkpoints / "checkpoints", 2)
    (folder / "manifest.json").write_bytes(with_digest({"format": "pfedmma-checkpoint/30", **said}))
    with pytest.raises(manifest.LaterFormat, match=r"in the format 'pfedmma-checkpoint/30'") as refused:
        read.newest_good(two_checkpoints / "checkpoints")
    assert str(refused.value).isprintable() and len(str(refused.value)) < 600


@pytest.mark.parametrize("form", ["pfedmma-client/2", "pfedmma-adapter/2"])
def test_a_client_file_of_a_later_version(form: str, tmp_path: Path) -> None:
    path = tmp_path / "client.safetensors"
    save_file({"elsewhere": torch.zeros(1)}, path, {"format": form, "version": "9.9"})
    before = path.read_bytes()
    for load in (load_client, pfedmma.load_adapter):
        with pytest.raises(UserError, match=rf"has format '{form}'"):
            load(own_clip(), path)
    with pytest.raises(UserError, match=r"written by pfedmma 9\.9"):
        load_client(own_clip(), path)
    assert path.read_bytes() == before
