"""What the shell is told on TAB: asked as argcomplete's shell functions ask."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pfedmma.system import completion
from pfedmma.system.errors import ArgumentParser
from tests.support.programs import python

WORDBREAKS = " \t\n\"'><=;|&(:"  # of bash: what stands behind a "=" is a word of its own


def told(line: str, folder: Path) -> list[str]:
    """What could stand at the end of ``line``, typed in ``folder``."""
    pytest.importorskip("argcomplete")
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9", "_ARGCOMPLETE_IFS": "|"}
    asked |= {"_ARGCOMPLETE_COMP_WORDBREAKS": WORDBREAKS, "_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "told")}
    done = python(["-m", "pfedmma"], folder, os.environ | asked)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    return sorted(word.strip() for word in (folder / "told").read_text(encoding="utf-8").split("|"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pfedmma tr", ["train"]),
        ("pfedmma c", ["compare", "cost"]),
        ("pfedmma --v", ["--version"]),
        ("pfedmma train --conf", ["--config"]),
        ("pfedmma train data.nam", ["data.name="]),
        ("pfedmma train --config demo data.clients=3 method.resc", ["method.rescale="]),
        ("pfedmma train method.rescale=", ["false", "true"]),
        ("pfedmma train method.name=pf", ["pfedmma", "pfedmoap"]),
        ("pfedmma describe data.name=oxford", ["oxford_flowers", "oxford_pets"]),
        ("pfedmma train --config methods/fedl", ["methods/fedlora"]),
        ("pfedmma cost --config own", ["own.yaml"]),
        ("pfedmma compare embed", ["embedded"]),
        ("pfedmma compare --jobs 2 embedded evaluation.sp", ["evaluation.split="]),
        ("pfedmma evaluate run checkpoint.ev", ["checkpoint.every="]),
        ("pfedmma export run --cl", ["--client"]),
        ("pfedmma nonsense x", [""]),
    ],
)
def test_what_could_stand_next(line: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("seed: 1\n")
    assert told(line, tmp_path) == words
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("asks", [completion.command_among, None])
def test_without_argcomplete_a_program_says_and_does_nothing(
    asks: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(completion.ASKED, "1")
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    with pytest.raises(SystemExit, match="1"):
        if asks is None:
            ArgumentParser().parse_args([])
        else:
            completion.command_among(["train"])
    assert capsys.readouterr() == ("", "")
