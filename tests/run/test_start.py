"""``method.private_init`` and ``method.freeze`` in whole runs: what clients begin with, end with, and leave as files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import pfedmma
from pfedmma import evaluate, predict, rng
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.data.pixels.crop import fit
from pfedmma.data.pixels.decode import decode
from pfedmma.export import main as export
from pfedmma.methods.base import Method
from pfedmma.methods.pfedmma import MultiModalAdapters
from pfedmma.records.checkpoint import manifest
from pfedmma.run.assembly import assemble, new_members
from pfedmma.system.errors import UserError
from pfedmma.train import main as train
from tests.support import painted, small
from tests.support.ranks import run_ranks, values_of
from tests.support.ranks import train as train_rank

CPU = torch.device("cpu")
# Methods with private tensors: all of them drawn; some drawn behind exchanged ones; a gating. And a control.
CASES = {
    "pfedmma": (),
    "fedotp": (),
    "fedpgp": (),
    "pfedmoap": (),
    "frozen": ("method.freeze=shared", "method.shared_scale=4"),
}
OWN = "method.private_init=own"


def settings(pictures: Path, folder: Path, case: str, *more: str) -> list[str]:
    name = "pfedmma" if case == "frozen" else case
    return painted.settings(pictures, folder, name, "optimizer.eps=0.01", *CASES[case], *more)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return painted.paint(tmp_path_factory.mktemp("pictures"))


class Finished:
    """A run of two rounds of one participant each, with a checkpoint after each; clients 0 .. 4, most of which never train."""

    def __init__(self, case: str, folder: Path, pictures: Path) -> None:
        self.case, self.folder = case, folder
        self.settings = settings(pictures, folder, case, OWN, *ROUNDS)
        train(self.settings)
        self.config = configuration.load(folder / "config.yaml")
        self.cohorts = [row["clients"] for row in small.metrics(folder)]
        self.trained = {client for cohort in self.cohorts for client in cohort}
        self.untrained = min(set(range(painted.CLIENTS)) - self.trained)
        run = assemble(self.config, World(0, 1, CPU))
        self.method: Method = run.engine.training.method
        self.layout = self.method.layout

    def drawn(self, client: int) -> dict[str, Tensor]:
        """What the client begins with, drawn here anew: private tensors of its own, all others the same for all."""
        common, own = (self.method.initial(rng.generator(0, "init", *key)) for key in ((), (client,)))
        return {name: common[name] if name in (*self.method.exchange, *self.method.frozen) else own[name] for name in common}


ROUNDS = ["federation.participation=0.2", "federation.rounds=2", "evaluation.every=2", "checkpoint.every=1", "optimizer.state=persist"]


@pytest.fixture(scope="module", params=CASES)
def finished(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(request.param, tmp_path_factory.mktemp(request.param) / "run", pictures)


# What clients begin with.


def test_private_tensors_are_the_clients_draw_and_all_others_are_common(finished: Finished) -> None:
    members = new_members(finished.method, finished.config, World(0, 1, CPU))
    tensors = members.answers().tensors([3, 1])
    for row, client in enumerate((3, 1)):
        for name, wanted in finished.drawn(client).items():
            assert torch.equal(tensors[name][row], wanted), name
    private = [name for name in finished.method.shapes if name not in (*finished.method.exchange, *finished.method.frozen)]
    weights = [name for name in private if tensors[name].any()]
    assert weights and all(not torch.equal(*tensors[name]) for name in weights)


def test_by_default_all_begin_alike(pictures: Path, tmp_path: Path, finished: Finished) -> None:
    config = configuration.load(None, settings(pictures, tmp_path, finished.case))
    tensors = new_members(finished.method, config, World(0, 1, CPU)).answers().tensors([3, 1])
    for name, wanted in finished.method.initial(rng.generator(0, "init")).items():
        assert all(torch.equal(row, wanted) for row in tensors[name]), name


@pytest.mark.parametrize("name", ["promptfl", "fedavg_mma", "zeroshot", "fedclip"])
def test_a_method_without_private_tensors_is_the_same_either_way(pictures: Path, tmp_path: Path, name: str) -> None:
    for choice in ("shared", "own"):
        train(
            painted.settings(pictures, tmp_path / choice, name, f"method.private_init={choice}", "evaluation.every=2", "optimizer.lr=0.01")
        )
    shared, own = (small.timeless(small.metrics(tmp_path / choice)) for choice in ("shared", "own"))
    assert own == shared


def test_a_hundred_thousand_registered_clients_cost_nothing(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    kind = type(finished.method)
    initial = kind.initial
    monkeypatch.setattr(kind, "initial", lambda self, generator: (asked.append(1), initial(self, generator))[1])
    config = configuration.load(None, ["data.clients=100000", f"method.name={finished.config.method.name}", OWN])
    members = new_members(finished.method, config, World(0, 1, CPU))
    assert len(asked) == 1  # what is common
    members.states.gather([99_999, 7], members.server.shared)
    assert len(asked) == 3 and len(members.states.own) == 0


# How they end.


def test_who_never_trained_takes_no_room_in_a_checkpoint(finished: Finished) -> None:
    kept = {int(name.split(".")[0]) for name in small.final_tensors(finished.folder) if name.endswith(".private")}
    assert kept == finished.trained and len(kept) < painted.CLIENTS


def test_two_ranks_are_one(finished: Finished, tmp_path: Path) -> None:
    arguments = [*finished.settings, f"run_dir={tmp_path / 'run'}"]
    values_of(run_ranks(tmp_path / "meet", 2, train_rank, arguments))
    for alone, together in zip(small.metrics(finished.folder), small.metrics(tmp_path / "run"), strict=True):
        assert together["clients"] == alone["clients"] and together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["accuracy"] == (alone["accuracy"] and pytest.approx(alone["accuracy"], rel=1e-5))
    small.assert_same_tensors(tmp_path / "run", finished.folder)


def test_a_resumed_run_is_the_unbroken_one(finished: Finished, tmp_path: Path) -> None:
    """To the last bit; whoever trains in round 2 has not trained before, so it begins with its draw after the pause."""
    assert finished.cohorts[0] != finished.cohorts[1]
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    shutil.rmtree(manifest.folder_of(folder / "checkpoints", 2))
    train([f"resume={folder}"])
    assert small.timeless(small.metrics(folder)) == small.timeless(small.metrics(finished.folder))
    got, wanted = small.final_tensors(folder), small.final_tensors(finished.folder)
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_another_start_is_another_run(finished: Finished, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    with pytest.raises(UserError, match=r"method\.private_init \(was own, is shared\)"):
        train([*finished.settings, f"run_dir={folder}", "method.private_init=shared", "resume=auto"])


def test_evaluate_gives_the_accuracy_of_the_run(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(finished.folder)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    summary = small.summary(finished.folder)
    assert (result["accuracy"], result["per_client"]) == (summary["accuracy"], summary["per_client"])


# What leaves as a file.


def answer_of(finished: Finished, client: int) -> dict[str, Tensor]:
    """What a client that never trained answers with: its draw, and what the server has come to."""
    shared = small.final_tensors(finished.folder)["server.shared"]
    return finished.drawn(client) | finished.layout.part(slice(0, len(shared)), shared)


def test_a_client_that_never_trained_is_exported(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "client.safetensors"
    export([str(finished.folder), "--client", str(finished.untrained), "--out", str(out)])
    found = {name: tensor for name, tensor in load_file(out).items() if not name.startswith("others.")}
    wanted = answer_of(finished, finished.untrained)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_client_that_trained_is_exported_without_a_backbone(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its private tensors are in the checkpoint; that of the untrained one needs the backbone."""
    monkeypatch.setattr("pfedmma.clip.loading.load", lambda *_: pytest.fail("a backbone was loaded"))
    client, out = min(finished.trained), tmp_path / "client.safetensors"
    export([str(finished.folder), "--client", str(client), "--out", str(out)])
    found, kept = load_file(out), small.final_tensors(finished.folder)[f"{client}.private"]
    private = finished.layout.private
    kept = kept[len(kept) - (private.stop - private.start) :]  # behind the exchanged tensors where clients answer with their own
    for name, tensor in finished.layout.part(private, kept).items():
        assert torch.equal(found[name], tensor), name


def test_predict_asks_the_model_that_is_exported(
    finished: Finished, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logarithms, as nearly all of the probability is that of one class."""
    picture = next(pictures.rglob("*.png"))
    answers = []
    for client in (finished.untrained, min(finished.trained)):
        capsys.readouterr()
        predict.main([str(finished.folder), str(picture), "--client", str(client), "--json", "--top", "99"])
        found = {row["class"]: math.log(row["probability"]) for row in json.loads(capsys.readouterr().out)["top"]}
        out = tmp_path / f"{client}.safetensors"
        export([str(finished.folder), "--client", str(client), "--out", str(out)])
        assert found == pytest.approx(asked(out, picture, list(found)), abs=1e-4)
        answers.append(found)
    assert answers[0] != pytest.approx(answers[1], abs=1e-3)


def asked(file: Path, picture: Path, names: list[str]) -> dict[str, float]:
    """Logarithms of the probabilities of the classes by an exported client's model."""
    clip = create_model(BackboneConfig("tiny"), seed=0)
    preprocess = Backbone.freeze(clip, "tiny").preprocess
    pixels = fit(decode(picture), preprocess)[None].float() / 255
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (preprocess.mean, preprocess.std))
    logits: Any = pfedmma.load_client(clip, file).classifier(names)((pixels - mean) / std)
    return dict(zip(names, logits[0].log_softmax(dim=-1).tolist(), strict=True))


# The frozen control.


@pytest.mark.parametrize(("name", "sent"), [("pfedmma", False), ("local", False), ("fedavg_mma", True)])
def test_a_frozen_projection_ends_as_it_began_and_costs_nothing(pictures: Path, tmp_path: Path, name: str, sent: bool) -> None:
    more = ["method.freeze=shared", "method.shared_scale=4", "federation.rounds=2", "optimizer.state=persist", "optimizer.lr=0.05"]
    train(painted.settings(pictures, tmp_path / "run", name, *more, "checkpoint.every=1"))
    summary, config = small.summary(tmp_path / "run"), configuration.load(tmp_path / "run" / "config.yaml")
    method = assemble(config, World(0, 1, CPU)).engine.training.method
    assert isinstance(method, MultiModalAdapters)
    layout, plain = method.layout, method.spec.initial(rng.generator(0, "init"))
    numbers = layout.trained_size if sent else 0
    assert (summary["trained_parameters"], summary["shared_parameters"]) == (layout.trained_size, numbers)
    assert summary["bytes_per_client_round"] == summary["bytes_down_per_client_round"] == 4 * numbers
    assert summary["comm"]["uplink_bytes"] == summary["comm"]["downlink_bytes"] == 4 * numbers * 2 * painted.PARTICIPANTS
    assert summary["comm"]["payload_bytes"] == 4 * numbers * 2
    trained = small.metrics(tmp_path / "run")[-1]["clients"][0]
    tensors = small.final_tensors(tmp_path / "run")
    assert len(tensors[f"{trained}.private"]) == layout.trained_size - numbers
    assert len(tensors[f"{trained}.optimizer.momentum"]) == layout.trained_size
    out = tmp_path / "client.safetensors"
    export([str(tmp_path / "run"), "--client", str(trained), "--out", str(out)])
    adapter = pfedmma.load_adapter(create_model(BackboneConfig("tiny"), seed=0), out).state_dict()
    assert adapter.keys() == plain.keys()
    for key, tensor in adapter.items():
        assert torch.equal(tensor, 4.0 * plain[key]) if key.startswith("shared.") else not torch.equal(tensor, plain[key]), key


def test_all_adapters_cost_what_they_cost_whatever_is_frozen(pictures: Path, tmp_path: Path) -> None:
    """The summary compares with what might travel instead."""
    costs = []
    for number, more in enumerate(([], ["method.freeze=shared"])):
        train(painted.settings(pictures, tmp_path / str(number), "pfedmma", *more, "federation.rounds=1", "checkpoint.every=0"))
        costs.append(small.summary(tmp_path / str(number))["alternatives"])
    assert costs[0] == costs[1]
