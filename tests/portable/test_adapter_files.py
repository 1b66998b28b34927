"""One client's adapters leave the run as a file and work on a fresh open_clip model."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import pfedmma
from pfedmma import train
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.export import main as export
from pfedmma.portable import adapter_file
from pfedmma.records.checkpoint import read
from pfedmma.records.folder import RunFolder
from pfedmma.run.assembly import assemble
from pfedmma.run.resume import restore
from pfedmma.system.errors import UserError
from tests.support.small import settings

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of the small run; with participation 0.4 of 7, at most 6 clients have trained."""
    path = tmp_path_factory.mktemp("export") / "run"
    train.main(settings(path, "evaluation.every=0", "checkpoint.every=1"))
    return path


def exported(run_dir: Path, client: int, folder: Path) -> Path:
    out = folder / f"client{client}.safetensors"
    export([str(run_dir), "--client", str(client), "--out", str(out)])
    return out


def fresh_clip() -> torch.nn.Module:
    """The backbone of the run once more, as a user's program would make it."""
    return create_model(BackboneConfig("tiny", "none"), seed=0)


@pytest.mark.parametrize("client", range(7))
def test_features_of_the_file_are_those_of_the_run(run_dir: Path, client: int, tmp_path: Path):
    run = assemble(configuration.load(run_dir / "config.yaml"), ALONE)
    restore(run, RunFolder(run_dir))
    engine = run.engine
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(client))
    prompts = run.backbone.prompts("a photo of a {}.", ["red circle", "blue star"])
    state = engine.members.answers().tensors([client])
    method = engine.training.method
    model = pfedmma.load_adapter(fresh_clip(), exported(run_dir, client, tmp_path))
    torch.testing.assert_close(model.encode_image(pixels, normalize=True), method.image_features(state, method.image_stem(pixels))[0])
    torch.testing.assert_close(model.encode_text(prompts.tokens, normalize=True), method.text_features(state, method.text_stem(prompts))[0])
    # The adapters do something, so that equality means something.
    assert not torch.allclose(model.encode_image(pixels), fresh_clip().encode_image(pixels), rtol=1e-3)


def test_names_shapes_and_metadata_are_the_contract(run_dir: Path, tmp_path: Path):
    path = exported(run_dir, 3, tmp_path)
    model = pfedmma.load_adapter(fresh_clip(), path)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}
    assert shapes["visual.6.down.weight"] == (32, 128) and shapes["text.6.up.weight"] == (64, 32) and shapes["shared.4.bias"] == (32,)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == shapes
    assert all(p.requires_grad for p in model.parameters())
    assert set(model.state_dict()) == set(shapes)  # the CLIP underneath is no part of it


def test_saved_again_it_is_the_same(run_dir: Path, tmp_path: Path):
    path = exported(run_dir, 0, tmp_path)
    model = pfedmma.load_adapter(fresh_clip(), path)
    pfedmma.save_adapter(model, tmp_path / "again.safetensors")
    (first, spec, made_for), (second, spec_again, made_for_again) = (adapter_file.read(p) for p in (path, tmp_path / "again.safetensors"))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items()) and first.keys() == second.keys()
    assert (spec, made_for) == (spec_again, made_for_again) and made_for.backbone == "tiny"


def test_it_trains_and_moves(run_dir: Path, tmp_path: Path):
    model = pfedmma.load_adapter(fresh_clip(), exported(run_dir, 0, tmp_path))
    tokens = open_clip.SimpleTokenizer(context_length=16)(["a photo of a red circle."])
    model.encode_text(tokens, normalize=True).sum().backward()
    grads = {name for name, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    assert any(name.startswith("text.") for name in grads) and any(name.startswith("shared.") for name in grads)
    assert not any(name.startswith("visual.") for name in grads)
    assert all(p.grad is None for p in model.clip.parameters())
    doubled = model.double()
    assert doubled.clip.logit_scale.dtype == torch.float64 and next(doubled.parameters()).dtype == torch.float64


def test_a_client_that_never_trained_has_what_the_seed_gives(run_dir: Path, tmp_path: Path):
    manifest = read.newest_good(run_dir / "checkpoints")
    assert manifest is not None and manifest.round == 2
    stored = {row.client for row in read.read_rows(run_dir / "checkpoints", manifest, range(7))}
    idle = next(i for i in range(7) if i not in stored)
    config = configuration.load(run_dir / "config.yaml")
    run = assemble(config, ALONE)
    first = {name: tensor[0] for name, tensor in run.engine.members.answers().tensors([idle]).items()}
    tensors = load_file(exported(run_dir, idle, tmp_path))
    assert torch.equal(tensors["visual.4.down.weight"], first["visual.4.down.weight"])
    assert not torch.equal(tensors["shared.4.weight"], first["shared.4.weight"])  # S has been received


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("shared.4.bias"), "no whole adapter"),
        (lambda tensors: tensors.update({"visual.4.down.weight": torch.zeros(32, 100)}), "no whole adapter|not for a model"),
        (lambda tensors: tensors.update({"visual.x.down.weight": torch.zeros(1)}), "no whole adapter"),
        (lambda tensors: [tensors.pop(name) for name in list(tensors) if ".6." in name], "not for a model|no whole adapter"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(run_dir: Path, tmp_path: Path, change, message: str):
    path = exported(run_dir, 0, tmp_path)
    tensors = load_file(path)
    change(tensors)
    metadata = {"format": "pfedmma-adapter/1", "dim": "32", "scale": "0.1", "activation": "relu", "backbone": "tiny"}
    save_file(tensors, tmp_path / "changed.safetensors", metadata)
    with pytest.raises(UserError, match=message):
        pfedmma.load_adapter(fresh_clip(), tmp_path / "changed.safetensors")


def test_files_of_other_kinds_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="there is no adapter file"):
        pfedmma.load_adapter(fresh_clip(), tmp_path / "nothing")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        pfedmma.load_adapter(fresh_clip(), tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(UserError, match="format 'None'"):
        pfedmma.load_adapter(fresh_clip(), tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--client", "7", "--out", "x"], "clients 0 .. 6"),
        (["--client", "-1", "--out", "x"], "clients 0 .. 6"),
        (["--client", "0", "--out", "nowhere/x"], "there is no folder"),
    ],
)
def test_export_says_what_is_wrong(run_dir: Path, arguments: list[str], message: str):
    with pytest.raises(UserError, match=message):
        export([str(run_dir), *arguments])
    with pytest.raises(UserError, match="holds no run"):
        export([str(run_dir.parent / "none"), *arguments])
