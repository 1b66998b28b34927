"""``evaluation.text_features=first``: one client's text features at one moment, for everybody and ever after; on any number of ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfedmma import evaluate
from pfedmma.accuracy import first_texts
from pfedmma.accuracy.first_texts import PURPOSE, FirstTexts
from pfedmma.engine.cohort import Members
from pfedmma.methods.forward import Forward
from pfedmma.records.checkpoint import manifest
from pfedmma.stack.answers import Answers
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small, stacks
from tests.support.ranks import run_ranks, train, values_of

BASE, NOVEL = stacks.in_turn(10), torch.arange(6) % 3
SETTINGS = ["backbone.pretrained=auto", "federation.rounds=4", "evaluation.every=2", "checkpoint.every=2", "checkpoint.keep=9"]
FIRST = "evaluation.text_features=first"


# By hand.


def texts_of(members: Members, client: int, method: Any, names: tuple[str, ...]) -> Tensor:
    """[K,D] of one client."""
    forward = Forward.from_prompts(method, "a photo of a {}.", names)
    with torch.no_grad():
        return forward.text_features(members.answers().tensors([client]))[0]


def test_they_are_those_of_the_first_client_at_the_first_evaluation(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client's logits are its own image features times them, before and after the clients have changed."""
    method = stacks.strong_adapters(tiny_clip)
    members, here = stacks.new_members(method, spread=0.5), stacks.alone(stacks.ALL)
    clients = stacks.new_clients(cameras=False)
    evaluator = stacks.new_evaluator(method, clients, BASE, NOVEL)
    wanted = {"base": texts_of(members, 3, method, stacks.NAMES), "novel": texts_of(members, 3, method, stacks.NOVEL)}
    texts, seen = FirstTexts(), list[tuple[Tensor, Tensor]]()
    logits = type(method).logits

    def watched(self: Any, state: dict[str, Tensor], images: Tensor, features: Tensor) -> Tensor:
        seen.append((images, features))
        return logits(self, state, images, features)

    monkeypatch.setattr(type(method), "logits", watched)
    for change in (False, True):
        if change:
            members.states.own.update({client: 2.0 * row for client, row in list(members.states.own.items())})
        got = texts.get(evaluator, method, members.answers(), clients[3], here)
        assert all(torch.equal(got[name][0], features) for name, features in wanted.items())
        seen.clear()
        answers = members.answers()
        evaluator.table(method, Answers(answers.states, answers.shared, answers.pool, answers.reads, got), clients)
        for _, features in seen:
            name = "base" if features.shape[1] == len(stacks.NAMES) else "novel"
            assert all(torch.equal(row, wanted[name]) for row in features)
        assert not torch.equal(seen[0][0][0], seen[0][0][1])  # the images are seen by each client's own adapters
    assert not torch.allclose(texts_of(members, 3, method, stacks.NAMES), wanted["base"], atol=1e-3)
    assert not torch.allclose(texts_of(members, 1, method, stacks.NAMES), wanted["base"], atol=1e-3)


def test_what_travels(tiny_clip: nn.Module) -> None:
    """K x D numbers of each test set, once."""
    method = stacks.strong_adapters(tiny_clip)
    members, here = stacks.new_members(method), stacks.alone(stacks.ALL)
    clients = stacks.new_clients()
    evaluator, texts = stacks.new_evaluator(method, clients, BASE, NOVEL), FirstTexts()
    for _ in range(2):
        texts.get(evaluator, method, members.answers(), clients[0], here)
        assert here.world.ledger.total.keys() == {PURPOSE}
        assert (here.world.ledger.total[PURPOSE].collectives, here.world.ledger.total[PURPOSE].payload_bytes) == (2, 4 * 64 * (5 + 3))
    again = FirstTexts(texts.flat())
    assert all(features.dim() == 1 for features in again.kept.values())
    got = again.get(evaluator, method, members.answers(), clients[4], here)
    assert (
        all(torch.equal(got[name], features) for name, features in texts.kept.items()) and here.world.ledger.total[PURPOSE].collectives == 2
    )
    with pytest.raises(UserError, match="the checkpoint keeps text features of another size for the novel test set"):
        FirstTexts({"base": texts.flat()["base"], "novel": torch.zeros(7)}).get(evaluator, method, members.answers(), clients[0], here)


# Whole runs.


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run: as usual, with the first texts on 1 and 2 ranks, and on 1 and, from round 3 on, 2 ranks."""
    root = tmp_path_factory.mktemp("texts")
    plans: dict[str, list[tuple[int, list[str]]]] = {"current": [(1, [])], "1": [(1, [FIRST])], "2": [(2, [FIRST])]}
    plans["1-then-2"] = [(1, [FIRST, "federation.rounds=2"]), (2, [FIRST])]
    for name, parts in plans.items():
        for number, (size, more) in enumerate(parts):
            arguments = small.settings(root / name, *SETTINGS, "resume=auto", *more)
            values_of(run_ranks(root / f"meet-{name}-{number}", size, train, arguments))
    return {name: root / name for name in plans}


def test_training_and_zero_shot_are_what_they_were(runs: dict[str, Path]) -> None:
    for name in ("1", "2", "1-then-2"):
        assert small.summary(runs[name])["zero_shot"] == pytest.approx(small.summary(runs["current"])["zero_shot"])
        assert [row["loss"] for row in small.metrics(runs[name])] == pytest.approx([row["loss"] for row in small.metrics(runs["current"])])
    assert small.summary(runs["1"])["accuracy"] != small.summary(runs["current"])["accuracy"]


@pytest.mark.parametrize("other", ["2", "1-then-2"])
def test_the_same_on_other_ranks_and_after_a_pause(runs: dict[str, Path], other: str) -> None:
    alone, together = small.metrics(runs["1"]), small.metrics(runs[other])
    for one, two in zip(alone, together, strict=True):
        assert one["accuracy"] == (two["accuracy"] and pytest.approx(two["accuracy"], rel=1e-5))
    kept, wanted = small.final_tensors(runs[other]), small.final_tensors(runs["1"])
    assert {"text.base", "text.novel"} <= kept.keys() == wanted.keys()
    for name in ("text.base", "text.novel"):
        torch.testing.assert_close(kept[name], wanted[name], rtol=1e-5, atol=1e-6)


def test_the_ledger_counts_them_in_the_first_evaluation_alone(runs: dict[str, Path]) -> None:
    width = len(small.final_tensors(runs["1"])["text.base"]) + len(small.final_tensors(runs["1"])["text.novel"])
    for name in ("1", "2"):
        books = [row["comm"]["bookkeeping"].get(PURPOSE) for row in small.metrics(runs[name])]
        assert books == [None, {"collectives": 2, "payload_bytes": 4 * width}, None, None]
        assert small.summary(runs[name])["comm"]["bookkeeping"][PURPOSE] == books[1]
    assert PURPOSE not in small.summary(runs["current"])["comm"]["bookkeeping"]


def evaluated(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    evaluate.main([str(folder), *more])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_evaluate_gives_the_numbers_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the features that the run has kept; ``current`` tests the same models with their own; a run that has none makes some."""
    small.few_images(monkeypatch, test=2)
    main(small.settings(tmp_path / "run", *SETTINGS, FIRST))
    main(small.settings(tmp_path / "plain", *SETTINGS))
    summaries = {name: small.summary(tmp_path / name) for name in ("run", "plain")}
    again = evaluated(tmp_path / "run", capsys)
    assert (again["accuracy"], again["per_client"]) == (summaries["run"]["accuracy"], summaries["run"]["per_client"])
    assert evaluated(tmp_path / "run", capsys, "evaluation.text_features=current")["accuracy"] == summaries["plain"]["accuracy"]
    fresh = evaluated(tmp_path / "plain", capsys, FIRST)["accuracy"]
    assert fresh not in (summaries["plain"]["accuracy"], summaries["run"]["accuracy"])
    # From the checkpoint after round 2, the round of the first evaluation: the features that the run had then.
    shutil.rmtree(manifest.folder_of(tmp_path / "run" / "checkpoints", 4))
    assert evaluated(tmp_path / "run", capsys)["accuracy"] == small.metrics(tmp_path / "run")[1]["accuracy"]


def test_features_of_another_size_are_refused_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch)
    main(small.settings(tmp_path / "run", *SETTINGS, FIRST, "federation.rounds=2"))
    monkeypatch.setattr(first_texts.Forward, "text_features", lambda self, state: torch.zeros(1, 3, 5))
    with pytest.raises(UserError, match="keeps text features of another size for the base test set"):
        main([f"resume={tmp_path / 'run'}", "federation.rounds=4"])
