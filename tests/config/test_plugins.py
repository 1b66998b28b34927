"""Files and modules of the user's own: found, hashed, imported once, and the same code or none when a run is read again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pfedmma import export, train
from pfedmma.config import schema
from pfedmma.config.identity import comparable, refuse_other_config, relevant, settings
from pfedmma.methods import registry
from pfedmma.portable import adapter_file
from pfedmma.records.folder import RunFolder
from pfedmma.run.client import KeptClient
from pfedmma.system.errors import UserError
from tests.support import small

BIAS = """
from dataclasses import dataclass
from pfedmma import methods
from pfedmma.methods.base import Method, shared_by
from pfedmma.system.options import setting
from torch.nn import functional as F

@dataclass(frozen=True)
class BiasSettings:
    scale: float = setting(1.0, "factor of the bias")

@dataclass(frozen=True)
class TextBias(Method):
    settings: BiasSettings

    @property
    def shapes(self):
        return {"bias": (self.backbone.text.projection.shape[1],)}

    def text_features(self, state, stem):
        return F.normalize(shared_by(state, stem.value) + self.settings.scale * state["bias"].unsqueeze(1), dim=-1)

methods.register("textbias", lambda settings, backbone: TextBias(backbone, settings), {"lr": 0.3}, BiasSettings)
"""


@pytest.fixture(autouse=True)
def alone(no_plugins: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder of its own, and without what earlier tests registered or imported."""
    monkeypatch.chdir(tmp_path)


def write(path: Path | str, text: str = BIAS) -> str:
    """A file with this text; its hash."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_gives_a_method_with_settings_and_an_optimizer(tmp_path: Path) -> None:
    made = write("textbias.py")
    config = schema.load(None, ["plugins=textbias.py", "method.name=textbias", "method.textbias.scale=2"])
    assert (config.method.own.scale, config.optimizer.lr) == (2.0, 0.3)
    assert config.plugins == (str(tmp_path / "textbias.py"),) and config.plugin_hashes == (made,)


def test_in_a_file_of_settings_and_read_back_from_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("textbias.py")
    Path("own.yaml").write_text("plugins: [textbias.py]\nmethod: {name: textbias, textbias: {scale: 3}}\n")
    config = schema.load("own.yaml")
    Path("kept.yaml").write_text(schema.dump(config))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert schema.load(tmp_path / "kept.yaml") == config


def test_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write("own_package/bias.py")
    write("own_package/__init__.py", "")
    monkeypatch.syspath_prepend(tmp_path)
    config = schema.load(None, ["plugins=[own_package.bias]", "method.name=textbias"])
    assert (config.plugins, config.plugin_hashes) == (("own_package.bias",), (made,))


def test_it_is_imported_once_however_often_settings_are_read() -> None:
    write("counted.py", BIAS + "\nfrom pathlib import Path\nwith Path('count').open('a') as file:\n    file.write('x')\n")
    for _ in range(3):
        schema.load(None, ["plugins=counted.py"])
    assert Path("count").read_text() == "x"


def test_moved_code_with_the_same_content_is_the_same_run(tmp_path: Path) -> None:
    write("first/textbias.py")
    kept = schema.load(None, ["plugins=first/textbias.py", "method.name=textbias"])
    Path("kept.yaml").write_text(schema.dump(kept))
    Path("first/textbias.py").rename("textbias.py")
    moved = schema.load("kept.yaml")  # found where the program starts, by its hash
    assert moved.plugins == (str(tmp_path / "textbias.py"),)
    refuse_other_config(moved, comparable(kept))
    assert relevant(settings(moved)) == relevant(settings(kept))


def test_changed_code_is_another_run(tmp_path: Path) -> None:
    write("textbias.py")
    train.main(small.settings(tmp_path / "run", "plugins=textbias.py", "method.name=textbias"))
    write("textbias.py", BIAS.replace('{"lr": 0.3}', '{"lr": 0.4}'))
    with pytest.raises(UserError, match=r"textbias.py is not the code that the run was made with \(SHA-256 .{12}... then, .{12}... now\)"):
        schema.load(tmp_path / "run" / "config.yaml")
    again = small.settings(tmp_path / "run", "plugins=textbias.py", "method.name=textbias", "resume=auto")
    with pytest.raises(UserError, match="plugin_hashes"):
        train.main(again)
    assert relevant(settings(schema.load(None, again))) != relevant(small.summary(tmp_path / "run")["config"])
    with pytest.raises(UserError, match="is not the code"):
        KeptClient.from_run(RunFolder(tmp_path / "run"), 0)


def test_code_inside_a_run_folder_is_never_run(tmp_path: Path) -> None:
    write("run/evil.py", "from pathlib import Path\nPath('ran').touch()\n")
    Path("beside.py").symlink_to("run/evil.py")
    for name in ("run/evil.py", "beside.py"):
        Path("run/config.yaml").write_text(f"plugins: [{name}]\nrun_dir: elsewhere\n")
        with pytest.raises(UserError, match="inside the run folder, which holds no code"):
            schema.load("run/config.yaml", ["run_dir=run"])
        with pytest.raises(UserError, match="inside the run folder, which holds no code"):
            KeptClient.from_run(RunFolder("run"), 0)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:\n", r"mine.py cannot be imported: SyntaxError: .*, line 1; repair it"),
        ("\nimport own_missing\n", r"mine.py cannot be imported: ModuleNotFoundError: No module named 'own_missing', line 2; repair it"),
        ("\n\n1 / 0\n", r"mine.py cannot be imported: ZeroDivisionError: division by zero, line 3"),
        ("raise SystemExit(3)\n", r"mine.py cannot be imported: SystemExit: 3"),
        ("from pfedmma import methods\nmethods.register('local', None)\n", "mine.py: 'local' is a method of pfedmma"),
        ("from pfedmma import methods\nmethods.register('x', None, settings=int)\n", "mine.py: the settings of 'x' must be a dataclass"),
    ],
    ids=["syntax", "import", "error", "exit", "taken", "settings"],
)
def test_code_that_cannot_be_imported(text: str, message: str) -> None:
    write("mine.py", text)
    for _ in range(2):  # nothing of it is left behind
        with pytest.raises(UserError, match=message):
            schema.load(None, ["plugins=mine.py"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("plugins=missing.py", "cannot read missing.py: No such file or directory .looked for at /"),
        ("plugins=[a.folder/mine.py]", "cannot read a.folder/mine.py"),
        ("plugins=own_nowhere", "there is no module 'own_nowhere'"),
        ("plugins=own_nowhere.part", "there is no module 'own_nowhere.part'"),
        ("plugins=..", "there is no module"),
        ("plugins=sys", "there is no module 'sys'"),  # built in: there is no code to compare
        ("plugins={a: 1}", "plugins: a list is expected"),
        ("plugin_hashes=[00]", "1 for 0 plugins; leave plugin_hashes out"),
    ],
)
def test_what_is_no_plugin(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        schema.load(None, [given])


def test_two_plugins_with_one_name_are_refused() -> None:
    write("one.py")
    write("two.py", BIAS + "\n")
    with pytest.raises(UserError, match=r"'textbias' is registered twice, by .*one\.py and by .*two\.py; give one of them another name"):
        schema.load(None, ["plugins=[one.py, two.py]"])


def test_the_plugin_of_an_unknown_method_is_missing() -> None:
    with pytest.raises(UserError, match="'textbias' is not known; choose one of"):
        schema.load(None, ["method.name=textbias"])


def test_adapters_of_ones_own_take_the_settings_of_adapters(tmp_path: Path) -> None:
    """They are exported as an adapter file."""
    write(
        "visual_only.py",
        "from pfedmma import methods\n"
        "from pfedmma.methods.pfedmma import MultiModalAdapters\n"
        "methods.register('visual_mma', MultiModalAdapters.from_settings, adapters=True)\n",
    )
    train.main(small.settings(tmp_path / "run", "plugins=visual_only.py", "method.name=visual_mma", "method.dim=4"))
    export.main([str(tmp_path / "run"), "--client", "1", "--out", "client.safetensors"])
    _, spec, _ = adapter_file.read("client.safetensors")
    assert spec.dim == 4 and small.summary(tmp_path / "run")["shared_parameters"] > 0


def test_one_that_trains_nothing() -> None:
    write(
        "frozen.py",
        "from pfedmma import methods\nfrom pfedmma.methods.base import Method\nmethods.register('same', Method, trains=False)\n",
    )
    schema.load(None, ["plugins=frozen.py"])
    assert not registry.entry_of("same").trains
