"""A run that has been done says so and shows its result, without model and data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pfedmma import train
from tests.support import small

EVALUATED = ("evaluation.every=1", "federation.rounds=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        train.main(small.settings(folder, *EVALUATED))
    return folder


def test_with_an_earlier_checkpoint_alone_it_goes_on(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With none at all there is nothing to go on from, and the result is there."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "checkpoints" / "round-000001").rename(copy / "checkpoints" / "round-000000")
    monkeypatch.setattr(train, "assemble", assembled)
    with pytest.raises(AssertionError, match="were asked for"):
        train.main([f"resume={copy}"])
    shutil.rmtree(copy / "checkpoints")
    train.main([f"resume={copy}"])


def assembled(*args: Any) -> None:
    raise AssertionError("model and data were asked for")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("more", [[], ["federation.clients_per_pass=1"]])
def test_it_is_shown_at_once_and_nothing_is_written(
    run: Path, more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, hm = contents(run), small.summary(run)["accuracy"]["hm"]
    monkeypatch.setattr(train, "assemble", assembled)
    train.main(small.settings(run, *EVALUATED, "resume=auto", *more))
    out = capsys.readouterr().out
    assert out.startswith(f"finished: all 1 rounds of {run} are done; federation.rounds=N goes on to round N\n")
    assert f" {hm:.2f} " in out and "zeroshot" in out and contents(run) == before
    train.main([f"resume={run}"])
    assert f" {hm:.2f} " in capsys.readouterr().out


@pytest.mark.parametrize("more", ["federation.rounds=2", "evaluation.split=val", "trackers=tensorboard", "seed=1"])
def test_what_would_be_another_result_is_not(run: Path, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a run of which a tracker may not know all."""
    monkeypatch.setattr(train, "assemble", assembled)
    with pytest.raises(AssertionError, match="were asked for"):
        train.main(small.settings(run, *EVALUATED, "resume=auto", more))


@pytest.mark.parametrize("text", [None, "{", '{"config": 3}'])
def test_without_a_good_summary_it_goes_on(run: Path, text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (run / "summary.json").read_bytes()
    os.unlink(run / "summary.json")
    if text is not None:
        (run / "summary.json").write_text(text)
    monkeypatch.setattr(train, "assemble", assembled)
    with pytest.raises(AssertionError, match="were asked for"):
        train.main(small.settings(run, *EVALUATED, "resume=auto"))
    (run / "summary.json").write_bytes(whole)
