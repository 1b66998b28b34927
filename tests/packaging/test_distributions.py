"""What is built for others: a source distribution, of it a wheel, and what that can do in a folder of its own."""

from __future__ import annotations

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from pfedmma.version import VERSION
from tests.support import small

setuptools = pytest.importorskip("setuptools")  # as an environment of Python 3.12 or later need not have it

ROOT = Path(__file__).resolve().parents[2]
TREES = ("pfedmma", "configs", "launch", "tests", "benchmarks", ".ci")
FILES = ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "Makefile", "README.md", "CHANGELOG.md", "LICENSE")
LEFT = ("__pycache__", ".hypothesis")
BUILD = "import setuptools.build_meta as build; print(build.build_{kind}(r'{out}'))"
FEW = ["data.shots=1", "federation.rounds=2", "federation.local_epochs=1", "evaluation.every=0"]
WHEELS = importlib.util.find_spec("wheel") is not None or tuple(map(int, setuptools.__version__.split(".")[:2])) >= (70, 1)


def kept(folder: Path) -> set[str]:
    """The files below ``folder`` that belong to it."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not set(path.parts) & set(LEFT)}


def build(kind: str, source: Path, out: Path) -> Path:
    """The distribution of ``source``, made without a network by the setuptools that are here."""
    run(["-c", BUILD.format(kind=kind, out=out)], source)
    (made,) = out.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


def run(arguments: list[str], cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """What a Python of its own prints; it finds no package but those that are installed, and what ``env`` adds."""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=bare | dict(env or {}), capture_output=True, text=True, timeout=small.PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked. It is built in a copy of the tree: a build leaves its traces where it is done."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in TREES:
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns(*LEFT))
    for name in FILES:
        shutil.copy2(ROOT / name, folder / "tree")
    with tarfile.open(build("sdist", folder / "tree", folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"pfedmma-{VERSION}"


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    if not WHEELS:
        pytest.skip(f"setuptools {setuptools.__version__} makes no wheels; 70.1 does")
    return build("wheel", sdist, sdist.parent)


def test_the_source_distribution_is_the_whole_tree(sdist: Path) -> None:
    for name in TREES:
        assert kept(sdist / name) == kept(ROOT / name), name
    assert all((sdist / name).is_file() for name in FILES)


def test_the_wheel_is_the_package_with_its_files_of_settings(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    configs = {f"configs/{name}" for name in kept(ROOT / "configs")}
    assert names == {f"pfedmma/{name}" for name in kept(ROOT / "pfedmma") | configs}
    assert {"pfedmma/py.typed", "pfedmma/configs/demo.yaml", "pfedmma/configs/compare/embedded.yaml"} <= names


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        said = archive.read(f"pfedmma-{VERSION}.dist-info/METADATA").decode().split("\n\n")[0].splitlines()
        scripts = archive.read(f"pfedmma-{VERSION}.dist-info/entry_points.txt").decode()
    assert {f"Version: {VERSION}", "Author: pfedmma contributors", "Requires-Python: >=3.10"} <= set(said)
    assert any(line in said for line in ("License-Expression: Apache-2.0", "License: Apache-2.0"))
    assert "pfedmma = pfedmma.__main__:script" in scripts


def test_what_the_tests_need_is_all_that_is_extra() -> None:
    """Nothing optional is left untested: `dev` has what the other extras have, but for a tokenizer that reads fetched files."""
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = {name: set(needs.split("\n")) for name, needs in declared["options.extras_require"].items()}
    assert {"plots", "pandas"} <= extras.keys() and all(needs <= extras["dev"] for name, needs in extras.items() if name != "siglip")


@pytest.mark.slow
def test_the_installed_wheel_trains_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """Settings and comparisons by name; the libraries are those that are here, the package is that of the wheel."""
    site, here = tmp_path / "site", tmp_path / "elsewhere"
    here.mkdir()
    run(["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(site), str(wheel)], tmp_path)
    env = {"PYTHONPATH": str(site)}
    programs = [["train", "--config", "demo", *FEW], ["compare", "embedded", "--dry-run"]]
    code = "import sys, runpy, pfedmma; print(pfedmma.__file__)\n" + "".join(
        f"sys.argv = {['pfedmma', *words]!r}\nrunpy.run_module('pfedmma', run_name='__main__', alter_sys=True)\n" for words in programs
    )
    out = run(["-c", code], here, env)
    assert out.startswith(str(site)) and "--config runs/compare/embedded/plans/" in out
    made = small.summary(here / "runs" / "shapes-pfedmma-seed0")
    assert (made["version"], made["versions"]["pfedmma"], made["config"]["data.clients"]) == (VERSION, VERSION, 10)
    assert (site / "bin" / "pfedmma").is_file()
