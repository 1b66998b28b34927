"""Files of settings and comparisons by their names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pfedmma.compare import grid
from pfedmma.compare.__main__ import main as compare
from pfedmma.config import schema, shipped
from pfedmma.system.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_a_name_is_the_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder is no file of settings
    assert shipped.folder() == CONFIGS
    assert shipped.located("demo") == CONFIGS / "demo.yaml" and shipped.located("embedded", True) == CONFIGS / "compare" / "embedded.yaml"
    assert schema.load(["demo", "methods/fedlora"]) == schema.load([CONFIGS / "demo.yaml", CONFIGS / "methods" / "fedlora.yaml"])


def test_every_file_has_a_name() -> None:
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert {*shipped.names(), *(f"compare/{name}" for name in shipped.names(True))} == files
    assert {"demo", "caltech101", "methods/pfedmma", "server/median"} <= set(shipped.names()) and "embedded" in shipped.names(True)


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "own.yaml"):  # also one of a name that the package has, and without a suffix
        (tmp_path / name).write_text("seed: 7\n")
        assert schema.load(name).seed == schema.load(tmp_path / name).seed == 7


@pytest.mark.parametrize(
    ("text", "comparisons", "says"),
    [
        ("demoo", False, "no config file 'demoo', in the package or here; did you mean demo"),
        ("caltech", False, "did you mean caltech101"),
        ("methods/fedlor", False, "did you mean methods/fedlora"),
        ("embeded", True, "no compare file 'embeded', in the package or here; did you mean embedded"),
        ("zzz", False, "the package has .*caltech101, .*demo"),
        ("embedded", False, "no config file 'embedded'"),
        ("../../etc/passwd", False, "no config file"),
        ("a\0b", False, r"no config file 'a\\x00b'"),
        ("x" * 5000, False, "no config file 'xxx"),
        ("configs/demo.yaml", False, "there is no such file; the package has one, write demo$"),
        ("configs/methods/fedlora.yaml", False, "write methods/fedlora$"),
        ("configs/compare/embedded.yaml", True, "write embedded$"),
        ("mydemo.yaml", False, "cannot read the config file mydemo.yaml: No such file or directory"),
    ],
)
def test_an_unknown_one_names_what_is_near(
    text: str, comparisons: bool, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        if comparisons:
            compare([text, "--dry-run"])
        else:
            schema.load(text)


def test_a_comparison_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    compare(["shots_embedded", "--dry-run"])
    assert "--config runs/compare/shots_embedded/plans/" in capsys.readouterr().out


def test_a_compare_file_starts_from_a_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("config: demo\nmethods: [pfedmma]\n")
    assert grid.read(file)[0].config.data == schema.load("demo").data
    file.write_text("config: demoo\nmethods: [pfedmma]\n")
    with pytest.raises(UserError, match=r"mine\.yaml: there is no config file 'demoo', .*; did you mean demo"):
        grid.read(file)


def test_an_installed_package_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/packaging` installs one."""
    shutil.copytree(CONFIGS, tmp_path / "pfedmma" / "configs")
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "pfedmma")
    assert shipped.located("demo") == tmp_path / "pfedmma" / "configs" / "demo.yaml"
