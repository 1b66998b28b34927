"""A sample of clients may be tested, and a long evaluation gives signs of life."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from pfedmma.engine import participation
from pfedmma.run import display
from pfedmma.system.console import ProgressBar
from pfedmma.train import main
from tests.support import small


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch, test=2)


def test_a_sample_is_drawn_once() -> None:
    chosen = participation.tested(range(100), 7, seed=0)
    assert len(set(chosen)) == 7 and chosen == sorted(chosen) == participation.tested(range(100), 7, seed=0)
    assert chosen != participation.tested(range(100), 7, seed=1)
    assert participation.tested(range(5), 0, seed=0) == participation.tested(range(5), 9, seed=0) == [0, 1, 2, 3, 4]


def test_the_sample_has_the_accuracies_that_it_has_among_all(tmp_path: Path) -> None:
    settings = ["evaluation.every=2", "backbone.pretrained=auto", "data.clients=5"]
    main(small.settings(tmp_path / "all", *settings))
    main(small.settings(tmp_path / "some", *settings, "evaluation.clients=2"))
    every, some = small.summary(tmp_path / "all"), small.summary(tmp_path / "some")
    chosen = participation.tested(range(5), 2, seed=0)
    for client, other in zip(some["per_client"], every["per_client"], strict=True):
        if client["id"] in chosen:
            assert client == other
        else:
            assert client["local"] is client["base"] is client["novel"] is client["zero_shot"]["local"] is None
    mean = sum(every["per_client"][i]["local"] for i in chosen) / 2
    assert some["accuracy"]["local"] == pytest.approx(mean) and some["zero_shot"]["local"] is not None


def test_a_long_evaluation_says_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    with ProgressBar("round", 3) as bar:
        told = display.testing(bar, "zero-shot")
        for done in range(0, 100, 10):
            told(done / 2, 50)
            now[0] += 10.0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [said for said, _ in lines] == ["zero-shot: testing client 21/50", "zero-shot: testing client 41/50"]
    assert all(datetime.datetime.fromisoformat(stamp).tzinfo for _, stamp in lines)


def test_an_evaluation_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images at a time: it tells at each of them, of how many clients the tests are done by then."""
    heard: list[tuple[str, float, int]] = []
    monkeypatch.setattr(display, "testing", lambda bar, whom="": lambda done, total: heard.append((whom, done, total)))
    main(small.settings(tmp_path / "run", "evaluation.every=2", "federation.clients_per_pass=1", "evaluation.batch_size=3"))
    assert {whom for whom, _, _ in heard} == {"zero-shot", ""}
    own = [done for whom, done, _ in heard if not whom]
    assert own == sorted(set(own)) and own[0] == 0 and len(own) > 2
    assert all(0 <= done < total for _, done, total in heard)


def test_another_sample_has_a_reference_of_its_own(tmp_path: Path) -> None:
    settings = ["evaluation.every=1", "backbone.pretrained=auto", "data.clients=5", "federation.rounds=1"]
    main(small.settings(tmp_path / "run", *settings))
    main([f"resume={tmp_path / 'run'}", "federation.rounds=2", "evaluation.clients=2"])
    per_client = small.summary(tmp_path / "run")["per_client"]
    known = [client["id"] for client in per_client if client["zero_shot"]["base"] is not None]
    assert known == participation.tested(range(5), 2, seed=0)
