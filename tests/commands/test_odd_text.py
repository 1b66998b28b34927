"""Text from outside is shown as it is: markup, characters that a terminal lacks, formulas."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pfedmma.evaluate import main as evaluate
from pfedmma.system.csv_text import as_csv
from pfedmma.system.errors import RankFailure
from pfedmma.system.memory import shortage_named
from pfedmma.train import main
from tests.support import small


def test_markup_in_a_folders_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch)
    run = tmp_path / "a [/x] [red]b"
    main(small.settings(run, "federation.rounds=1"))
    evaluate([str(run)])
    assert "[/x] [red]b after round 1" in " ".join(capsys.readouterr().out.split())


def test_a_terminal_that_cannot_show_a_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pfedmma.train", *small.settings(tmp_path / "Größe 大", "federation.rounds=1")]
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert b"Gr??e ?" in done.stdout and b"Traceback" not in done.stderr
    command = [sys.executable, "-m", "pfedmma.evaluate", str(tmp_path / "nö")]
    done = subprocess.run(command, env=env, capture_output=True, timeout=1500)
    assert done.returncode == 2 and b"holds no run" in done.stderr and b"Traceback" not in done.stderr


def test_a_cell_is_no_formula() -> None:
    (row,) = csv.reader(io.StringIO(as_csv([["=1+1", "@x", "-lr", "+a", "plain", -1.5, None]])))
    assert row == ["'=1+1", "'@x", "'-lr", "'+a", "plain", "-1.5", ""]


@pytest.mark.parametrize(
    "error", [RuntimeError("unable to mmap 1024 bytes from file <a>: Cannot allocate memory (12)"), OSError(12, "Cannot allocate memory")]
)
def test_an_address_space_that_is_used_up_is_a_shortage_of_memory(error: Exception) -> None:
    with pytest.raises(RankFailure, match=r"^out of memory"), shortage_named():
        raise error


def test_other_errors_of_the_system_are_none() -> None:
    with pytest.raises(FileNotFoundError), shortage_named():
        raise FileNotFoundError(2, "No such file or directory")
