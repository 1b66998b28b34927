"""By which command and code a run was made."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from pfedmma.records import lock
from pfedmma.records.origin import Origin, revision
from pfedmma.records.rows import RunSummary
from pfedmma.system.errors import UserError
from pfedmma.system.fields import Fields
from tests.support.reported import origin, run_summary, summary


def git(folder: Path, *words: str) -> str:
    known = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", folder, *known, *words], check=True, capture_output=True, text=True).stdout.strip()


def test_the_command_can_be_given_again() -> None:
    made = Origin.now("pfedmma.train", ["--config", "my file.yaml", "seed=3"])
    assert made.command == "python -m pfedmma.train --config 'my file.yaml' seed=3"
    assert made.finished == "" and made.ended().finished >= made.started and made.started.endswith("Z")


def test_a_revision_is_that_of_the_checkout_itself(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    (tmp_path / "new").write_text("no part of it")
    assert revision(tmp_path) == commit
    (tmp_path / "file").write_text("b")
    assert revision(tmp_path) == f"{commit}+"
    (tmp_path / "installed").mkdir()
    assert revision(tmp_path / "installed") == ""  # the repository around it is not that of the code


def test_without_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision(tmp_path) == ""


def test_it_stands_in_the_summary_and_may_be_missing() -> None:
    assert run_summary().origin is None and "origin" not in run_summary().to_json()
    made = run_summary(origin=origin())
    assert made.origin is not None and made.origin.revision == "0123456789ab" and made.to_json()["origin"] == origin()
    assert RunSummary.from_fields(Fields(json.loads(json.dumps(made.to_json())), "summary")) == made
    assert dataclasses.replace(made, origin=None) == dataclasses.replace(run_summary())
    with pytest.raises(UserError, match="summary: origin: command must be a text"):
        RunSummary.from_fields(Fields(summary() | {"origin": origin() | {"command": 3}}, "summary"))


def test_a_folder_is_in_use_while_its_owner_lives(tmp_path: Path) -> None:
    assert not lock.in_use(tmp_path)
    with lock.owned(tmp_path):
        assert lock.in_use(tmp_path)
    assert not lock.in_use(tmp_path)
    ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout
    for process, machine, used in ((ended, platform.node(), False), (ended, "elsewhere", True), (os.getpid(), platform.node(), True)):
        (tmp_path / lock.NAME).write_text(json.dumps({"process": int(process), "machine": machine, "since": "now"}))
        assert lock.in_use(tmp_path) == used
    for text in ("", "[]", '{"machine": 3}', json.dumps({"machine": platform.node(), "process": 10**30})):
        (tmp_path / lock.NAME).write_text(text)
        assert not lock.in_use(tmp_path)
