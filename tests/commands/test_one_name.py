"""``pfedmma COMMAND``: the commands under one name."""

from __future__ import annotations

import configparser
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from pfedmma import __main__ as one_name
from pfedmma.system.errors import UserError
from pfedmma.version import VERSION
from tests.support.programs import python

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"train", "evaluate", "predict", "export", "describe", "compare", "report", "cost"}


def test_every_command_is_listed_with_its_purpose() -> None:
    done = python(["-m", "pfedmma"])
    shown = done.stdout.splitlines()
    lines = dict(line.strip().split(maxsplit=1) for line in shown if line.startswith("  ") and line[2] != " ")
    assert done.returncode == 0 and lines.keys() == COMMANDS and max(map(len, shown)) <= 80
    assert lines["predict"] == "What one client's model sees in images"


def test_the_list_imports_no_command_and_no_torch() -> None:
    program = "import runpy, sys; sys.argv = ['pfedmma']; runpy.run_module('pfedmma', run_name='__main__'); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    imported = out.splitlines()[-1].split()
    assert "pfedmma.version" in imported and "torch" not in imported
    assert not {f"pfedmma.{name}" for name in COMMANDS} & set(imported)


def test_a_command_is_the_module_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(runpy, "run_module", lambda module, **more: ran.append((module, sys.argv[1:])))
    for name in sorted(COMMANDS):
        monkeypatch.setattr(sys, "argv", ["pfedmma", name, "--help", "x=1"])
        one_name.main()
        assert ran.pop() == (f"pfedmma.{name}", ["--help", "x=1"]) and importlib.util.find_spec(f"pfedmma.{name}")


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pfedmma", "--version"])
    one_name.main()
    assert capsys.readouterr().out == f"pfedmma {VERSION}\n"


@pytest.mark.parametrize(
    ("name", "words"), [("trian", "did you mean 'train'"), ("xyz", "the commands are .*compare"), ("data", "the commands")]
)
def test_what_is_no_command(name: str, words: str) -> None:
    with pytest.raises(UserError, match=f"there is no command '{name}'; {words}"):
        one_name.module_of(name)


def test_it_ends_as_the_command_ends() -> None:
    done = python(["-m", "pfedmma", "describe", "data.clients=61"])
    assert done.returncode == 2 and done.stderr.startswith("error: data.clients") and len(done.stderr.splitlines()) == 1
    done = python(["-m", "pfedmma", "trian"])
    assert done.returncode == 2 and done.stderr == "error: there is no command 'trian'; did you mean 'train'?\n"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_says_the_exit_status(name: str) -> None:
    done = python(["-m", "pfedmma", name, "--help"])
    assert done.returncode == 0 and "\nexit status: 0" in done.stdout


def test_the_shell_gets_it() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    name, _, target = setup["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = target.partition(":")
    assert name == "pfedmma" and callable(getattr(importlib.import_module(module), function))
