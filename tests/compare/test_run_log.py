"""A log keeps what every attempt said; what is read of it is the last one."""

from __future__ import annotations

from pathlib import Path

from pfedmma.compare import run_log


def attempt(log: Path, said: str) -> None:
    with run_log.begin(log, ["python", "a file"]) as output:
        output.write(said.encode())


def test_attempts_follow_each_other(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    assert run_log.errors(log) == []
    log.write_text("error: of a version that wrote no line before an attempt\n")
    assert run_log.errors(log) == ["error: of a version that wrote no line before an attempt"]
    attempt(log, "one\n\nerror: the first\nlast\n")
    assert run_log.errors(log) == ["error: the first"] and run_log.last_attempt(log) == ["one", "error: the first", "last"]
    attempt(log, "two\n")
    assert run_log.errors(log) == [] and run_log.last_attempt(log) == ["two"]
    text = log.read_text()
    assert all(said in text for said in ("of a version", "error: the first", "two")) and text.count("python 'a file'\n") == 2
