"""Methods by name: those in this folder are found, and one from outside has settings like any other."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from pfedmma import evaluate, export, methods, predict, train
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.config import schema
from pfedmma.config.identity import settings as settings_of
from pfedmma.config.table import explained
from pfedmma.methods import registry
from pfedmma.methods.base import MEAN, Entry, Method, per_client
from pfedmma.methods.registry import BUILT_IN, NAMES, MethodConfig, entry_of, register
from pfedmma.portable.client_file import load_client
from pfedmma.system.errors import UserError
from pfedmma.system.options import setting
from tests.support import small

FIELDS = [field.name for field in dataclasses.fields(MethodConfig)]


# Those in the folder.


def test_every_file_that_ends_in_entries_is_found() -> None:
    folder = Path(methods.__path__[0])
    modules = [importlib.import_module(f"pfedmma.methods.{path.stem}") for path in folder.glob("*.py") if path.stem != "__init__"]
    entries = [entry for module in modules for entry in getattr(module, "ENTRIES", ())]
    assert len(entries) == len(BUILT_IN), "no two have the same name"
    assert {entry.name: entry for entry in entries} == BUILT_IN and tuple(BUILT_IN) == NAMES
    assert not set(NAMES) & set(FIELDS)


def test_an_unknown_method_is_told_all_there_are() -> None:
    with pytest.raises(UserError, match="name: 'fedmagic' is not known; choose one of ") as error:
        entry_of("fedmagic")
    assert all(name in str(error.value) for name in NAMES)


# One from outside.


@dataclass(frozen=True)
class GainSettings:
    """Gains: each number of the image feature is weighed."""

    start: float = setting(1.0, "the value of every gain before training")
    power: int = setting(1, "how often the gains are applied")

    def __post_init__(self) -> None:
        if self.power < 1:
            raise UserError(f"power: must be at least 1, not {self.power}")


@dataclass(frozen=True)
class Gains(Method):
    settings: GainSettings

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        width = self.backbone.visual.projection.shape[1]
        return {"gain": (width,), "offset": (width,)}

    @property
    def exchange(self) -> dict[str, str]:
        return {"offset": MEAN}

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"gain": torch.full(self.shapes["gain"], self.settings.start), "offset": torch.zeros(self.shapes["offset"])}

    def image_features(self, state, stem) -> Tensor:
        gain = state["gain"].unsqueeze(1) ** self.settings.power
        return F.normalize(per_client(state, stem.value) * gain + state["offset"].unsqueeze(1), dim=-1)


@dataclass(frozen=True)
class Plain(Method):
    """A method without settings: one offset."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"offset": (self.backbone.visual.projection.shape[1],)}

    def image_features(self, state, stem) -> Tensor:
        return F.normalize(per_client(state, stem.value) + state["offset"].unsqueeze(1), dim=-1)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``gains`` and ``plain``, for one test."""
    monkeypatch.setattr(registry, "REGISTERED", {})
    register("gains", lambda settings, backbone: Gains(backbone, settings), {"lr": 0.5}, GainSettings)
    register("plain", Plain)
    yield


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch)


def test_settings_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("method: {name: gains, gains: {start: 0.5, power: 3}}\n")
    wanted = MethodConfig("gains", own=GainSettings(0.5, 3))
    assert schema.load(tmp_path / "file.yaml").method == wanted
    assert schema.load(None, ["method.name=gains", "method.gains.start=0.5", "method.gains.power=3"]).method == wanted
    assert schema.load(tmp_path / "file.yaml", ["method.gains.power=2"]).method.own == GainSettings(0.5, 2)
    assert schema.load(None, ["method.name=gains"]).method == MethodConfig("gains") == MethodConfig("gains", own=GainSettings())


def test_they_are_read_back_as_they_are_written() -> None:
    config = schema.load(None, ["method.name=gains", "method.gains.start=0.5"])
    assert "  gains:\n    start: 0.5\n    power: 1\n" in schema.dump(config)
    assert schema.resolve(yaml.safe_load(schema.dump(config))) == config


def test_they_are_described_like_all_others() -> None:
    assert "method.gains.start=1.0" in explained() and "the value of every gain before training" in explained()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("method.gains.strat=1", r"unknown setting 'method\.gains\.strat'; did you mean 'method\.gains\.start'\?"),
        ("method.gain.start=1", r"unknown setting 'method\.gain\.start'; did you mean 'method\.gains\.start'\?"),
        ("method.gains.power=x", r"method\.gains\.power: a whole number is expected, not 'x'"),
        ("method.gains.power=0", r"method\.gains\.power: must be at least 1, not 0"),
        ("method.gains=1", r"'method\.gains' is a section; set one of its keys, for example method\.gains\.start"),
        ("method.plain.start=1", r"unknown setting 'method\.plain\.start'"),
        ("method.own=1", r"unknown setting 'method\.own'"),
        ("method.exchange=all", r"method\.exchange: .*gains says itself"),
    ],
)
def test_what_is_wrong_is_named(given: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        schema.load(None, ["method.name=gains", given])


def test_of_another_method_they_say_nothing() -> None:
    """They are checked, and stand nowhere: the same command line serves several methods."""
    config = schema.load(None, ["method.name=promptfl", "method.gains.start=0.5"])
    assert not any("gains" in name for name in settings_of(config)) and "gains" not in schema.dump(config)
    with pytest.raises(UserError, match=r"method\.gains\.power"):
        schema.load(None, ["method.name=promptfl", "method.gains.power=0"])


def test_its_optimizer_is_a_default() -> None:
    assert schema.load(None, ["method.name=gains"]).optimizer.lr == 0.5
    assert schema.load(None, ["method.name=gains", "optimizer.lr=0.1"]).optimizer.lr == 0.1
    assert schema.load(None, ["method.name=plain"]).optimizer == schema.Config().optimizer


RUN = ["method.name=gains", "method.gains.start=0.5", "method.gains.power=2", "optimizer.lr=0.5", "data.clients=4"]


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its settings stand in what it writes, and act."""
    train.main(small.settings(tmp_path / "run", *RUN, "evaluation.every=2"))
    assert schema.load(tmp_path / "run" / "config.yaml").method.own == GainSettings(0.5, 2)
    summary = small.summary(tmp_path / "run")
    assert (summary["config"]["method.gains.start"], summary["config"]["method.gains.power"]) == (0.5, 2)
    assert (summary["trained_parameters"], summary["shared_parameters"]) == (128, 64)
    assert torch.equal(small.final_tensors(tmp_path / "run")["initial"], torch.tensor([0.0, 0.5]).repeat_interleave(64))
    capsys.readouterr()
    evaluate.main([str(tmp_path / "run")])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == summary["accuracy"]
    train.main(small.settings(tmp_path / "other", *RUN, "method.gains.power=1"))
    assert [row["loss"] for row in small.metrics(tmp_path / "other")] != [row["loss"] for row in small.metrics(tmp_path / "run")]


def test_they_identify_the_run(tmp_path: Path) -> None:
    train.main(small.settings(tmp_path / "run", *RUN))
    more = ["resume=auto", "federation.rounds=3"]
    with pytest.raises(UserError, match=r"another configuration: method\.gains\.start \(was 0\.5, is 0\.7\)$"):
        train.main(small.settings(tmp_path / "run", *RUN, *more, "method.gains.start=0.7"))
    train.main(small.settings(tmp_path / "run", *RUN, *more))
    train.main(small.settings(tmp_path / "straight", *RUN, "federation.rounds=3"))
    assert small.timeless(small.metrics(tmp_path / "run")) == small.timeless(small.metrics(tmp_path / "straight"))


def test_they_travel_with_an_exported_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(small.settings(tmp_path / "run", *RUN))
    file = tmp_path / "client.safetensors"
    export.main([str(tmp_path / "run"), "--client", "1", "--out", str(file)])
    with safe_open(file, framework="pt") as content:
        assert json.loads(content.metadata()["method"]) == {"name": "gains", "gains": {"start": 0.5, "power": 2}}
    model = load_client(create_model(BackboneConfig("tiny", "none"), seed=0), file)
    assert isinstance(model.method, Gains) and model.method.settings == GainSettings(0.5, 2)

    image = tmp_path / "image.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(image)
    capsys.readouterr()
    predict.main([str(tmp_path / "run"), "--client", "1", "--json", "--top", "1", "--names", "cat,dog", str(image)])
    assert json.loads(capsys.readouterr().out)["top"][0]["class"] in ("cat", "dog")

    monkeypatch.setattr(registry, "REGISTERED", {})  # as in a process that does not import the method
    with pytest.raises(UserError, match=r"client\.safetensors is of the method 'gains', which test_registry.py registers; import"):
        load_client(create_model(BackboneConfig("tiny", "none"), seed=0), file)


def test_a_method_without_settings(tmp_path: Path) -> None:
    train.main(small.settings(tmp_path / "run", "method.name=plain", "data.clients=4"))
    assert schema.load(tmp_path / "run" / "config.yaml").method.own is None
    export.main([str(tmp_path / "run"), "--client", "1", "--out", str(tmp_path / "client.safetensors")])
    assert isinstance(load_client(create_model(BackboneConfig("tiny", "none"), seed=0), tmp_path / "client.safetensors").method, Plain)


# Names.


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_taken(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is a method of pfedmma; register your own under another name"):
        register(name, Plain)
    assert name not in registry.REGISTERED


@pytest.mark.parametrize("settings", [None, GainSettings])
@pytest.mark.parametrize("name", FIELDS)
def test_a_name_that_is_a_setting(name: str, settings: type | None) -> None:
    """``method.dim`` can be one thing only."""
    with pytest.raises(UserError, match=f"'{name}' has a meaning of its own in the section method; register your method under another"):
        register(name, Plain, settings=settings)
    assert name not in registry.REGISTERED and schema.load(None, []) == schema.Config(run_dir="runs/shapes-pfedmma-seed0")


@pytest.mark.parametrize("name", ["", "my.method", "a b", "a=b", "a/b", "\n"])
def test_a_name_that_cannot_be_written_as_a_setting(name: str) -> None:
    with pytest.raises(UserError, match="letters, digits, _ and -"):
        register(name, Plain)


@pytest.mark.parametrize("name", ["my_method", "my-method", "Méthode2"])
def test_names_that_can_be(name: str) -> None:
    register(name, lambda settings, backbone: Gains(backbone, settings), settings=GainSettings)
    assert schema.load(None, [f"method.name={name}", f"method.{name}.power=3"]).method.own == GainSettings(power=3)


def test_registered_again_it_is_the_newer_one() -> None:
    """As in a notebook."""
    register("plain", Plain, {"lr": 7.0})
    assert isinstance(entry_of("plain"), Entry) and schema.load(None, ["method.name=plain"]).optimizer.lr == 7.0


def test_by_the_name_of_the_package() -> None:
    assert methods.register is register
