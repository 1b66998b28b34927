"""Settings of local training that make no sense together, or with a method, are refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from pfedmma.clip.backbone import Backbone
from pfedmma.config import schema
from pfedmma.methods import registry
from pfedmma.run import display
from pfedmma.run.local import refuse_local
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small

SCAFFOLD = ["local.rule=scaffold", "optimizer.momentum=0"]
DITTO = ["local.rule=ditto"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["local.rule=fedprox", "method.name=local"], r"^local\.rule: fedprox needs exchanged tensors"),
        (["local.trains=private_first", "method.name=fedavg_mma"], r"^local\.trains: private_first .* has no private ones"),
        (["local.trains=exchanged", "method.name=local"], r"^local\.trains: exchanged .* has no exchanged ones"),
        (["local.fine_tune_epochs=1", "method.name=zeroshot"], r"^local\.fine_tune_epochs: this method has no trained tensors"),
        (["local.fine_tune_epochs=1", "local.fine_tune=private", "method.name=promptfl"], r"has no private tensors"),
        (["local.fine_tune_epochs=1", "method.name=pfedmoap"], r"^local\.fine_tune_epochs: .* have one; use another method"),
        ([*DITTO, "method.name=pfedmoap"], r"^local\.rule: ditto gives clients an answer of their own"),
        ([*SCAFFOLD, "method.name=pfedmoap", "optimizer.name=sgd"], r"^local\.rule: scaffold does not go with a method whose clients read"),
        (["local.trains=private_first", "local.private_epochs=2"], r"^local\.private_epochs: 2 of federation\.local_epochs=2 leave none"),
        (["local.trains=private_first", "optimizer.state=persist"], r"^optimizer\.state: persist goes with local\.trains=together"),
        (["local.fine_tune_epochs=1", "evaluation.select=best_test"], r"^evaluation\.select: clients are fine-tuned after the last round"),
        (["local.rule=scaffold"], r"^local\.rule: scaffold's control variates are mean gradients of plain SGD"),
        ([*SCAFFOLD, "optimizer.name=adam"], r"plain SGD"),
        ([*SCAFFOLD, "optimizer.clip=1"], r"plain SGD"),
        ([*SCAFFOLD, "privacy.secure_sum=true", "privacy.clip=1"], r"^local\.rule: scaffold's control variates travel without privacy"),
        ([*SCAFFOLD, "optimizer.cosine_rounds=9"], r"^optimizer\.cosine_rounds: scaffold takes"),
        (["local.rule=fedprox", "method.name=fedmgp"], r"^local\.rule: fedprox acts on exchanged tensors"),
        ([*SCAFFOLD, "privacy.clip=1"], r"^local\.rule: scaffold's control variates travel without privacy"),
        ([*SCAFFOLD, "server.robust=median"], r"^server\.robust: under median"),
        ([*SCAFFOLD, "federation.dropout=0.1"], r"^local\.rule: a scaffold client whose upload is lost"),
        ([*SCAFFOLD, "backbone.precision=fp16"], r"^local\.rule: scaffold counts every local step"),
    ],
)
def test_refused(tiny_clip: nn.Module, settings: list[str], message: str) -> None:
    config = schema.load(None, settings)
    with pytest.raises(UserError, match=message):
        refuse_local(registry.build(config.method, Backbone.freeze(tiny_clip, "tiny")), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["local.rule=moon"], r"^local\.rule: 'moon' is not known; choose one of plain, fedprox"),
        (["local.pull=-1"], r"^local\.pull"),
        ([*DITTO, "local.fine_tune_epochs=2"], r"^local\.fine_tune_epochs: ditto's clients answer with a personal model already"),
        ([*DITTO, "local.trains=exchanged"], r"^local\.trains: ditto trains whole models, not exchanged"),
    ],
)
def test_values_that_cannot_be(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schema.load(None, settings)


def test_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^local\.rule: scaffold"):
        main(small.settings(tmp_path / "run", "local.rule=scaffold"))
    assert not (tmp_path / "run").exists()


def test_frozen_s_goes_with_fine_tuning_of_the_private_parts(tiny_clip: nn.Module) -> None:
    config = schema.load(None, ["method.freeze=shared", "local.fine_tune_epochs=1", "local.fine_tune=private"])
    refuse_local(registry.build(config.method, Backbone.freeze(tiny_clip, "tiny")), config)


def test_fine_tuning_says_how_far_it_is_and_how_long_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch)
    heard: list[tuple[int, int]] = []
    monkeypatch.setattr(display, "fine_tuning", lambda bar: lambda done, total: heard.append((done, total)))
    main(small.settings(tmp_path / "run", "local.fine_tune_epochs=2", "federation.clients_per_pass=1"))
    total = heard[-1][1]
    assert heard == [(done, total) for done in range(total + 1)] and total % 2 == 0  # two epochs
    first, last = (row["seconds"] for row in small.metrics(tmp_path / "run"))
    assert "fine_tune" not in first and last["fine_tune"] > 0
    assert sum(last[part] for part in ("train", "wait", "exchange", "fine_tune", "evaluate")) == pytest.approx(last["total"])
