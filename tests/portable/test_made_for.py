"""A client's file says what it was made for; on other frozen weights, or with another activation, it is refused unless one insists."""

from __future__ import annotations

import base64
import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

import pfedmma
from pfedmma import train
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.fingerprint import FrozenWeights
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.export import main as export
from pfedmma.records.checkpoint import manifest
from pfedmma.records.folder import RunFolder
from pfedmma.system import tensor_files
from pfedmma.system.errors import UserError
from tests.support import small, specimens

METHODS = ("promptfl", "pfedmma")
TEMPLATE = "this is {}, drawn."
NAMES = ("red circle", "blue star")
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
Load = Callable[..., Any]
LOADERS: dict[str, Load] = {"load_adapter": pfedmma.load_adapter, "load_client": pfedmma.load_client}
USES = [("pfedmma", "load_adapter"), ("pfedmma", "load_client"), ("promptfl", "load_client")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of each method in ``<method>``, and its client 1 in ``<method>.safetensors``; one of them in bf16."""
    root = tmp_path_factory.mktemp("made_for")
    weights = root / "private" / "weights.safetensors"
    weights.parent.mkdir()
    save_file(dict(fresh().state_dict()), weights)
    with pytest.MonkeyPatch.context() as patch:
        small.few_images(patch)
        for method, precision in zip(METHODS, ("fp32", "bf16"), strict=True):
            more = [f"method.name={method}", "data.clients=4", f"data.template={TEMPLATE}", "federation.rounds=1"]
            train.main(small.settings(root / method, *more, f"backbone.precision={precision}", f"backbone.pretrained={weights}"))
            export([str(root / method), "--client", "1", "--out", str(root / f"{method}.safetensors")])
    return root


def fresh(seed: int = 0) -> nn.Module:
    """The backbone of the runs once more, or one of other weights."""
    return create_model(BackboneConfig("tiny", "none"), seed=seed)


def with_quick_gelu(clip: nn.Module) -> nn.Module:
    for tower in (clip.visual, clip):
        for block in tower.transformer.resblocks:
            block.mlp.gelu = QuickGELU()
    return clip


def changed(name: str, by: float) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        clip = fresh()
        clip.get_parameter(name).mul_(1 + by).add_(by)
        return clip

    return make


@pytest.mark.parametrize("method", METHODS)
def test_what_the_file_says(folder: Path, method: str):
    _, metadata = tensor_files.open_tensors(folder / f"{method}.safetensors")
    assert metadata["backbone"] == "tiny" and metadata["backbone.activation"] == "gelu"
    assert metadata["backbone.pretrained"] == "weights.safetensors"  # whose folder is nobody's business
    assert metadata["template"] == TEMPLATE and "private" not in str(metadata)
    assert FrozenWeights(fingerprint=metadata["backbone.fingerprint"]).has_numbers_of(Backbone.freeze(fresh()))
    run = RunFolder(folder / method)
    kept = manifest.read_manifest(manifest.folder_of(run.checkpoints, 1)).progress
    assert kept.backbone is not None and kept.backbone["fingerprint"] == metadata["backbone.fingerprint"]
    model = pfedmma.load_client(fresh(), folder / f"{method}.safetensors")
    assert kept.classes is not None and model.classes == kept.classes.base + kept.classes.novel
    assert model.template == TEMPLATE


@pytest.mark.parametrize(
    "change", [lambda clip: clip, nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda clip: clip.half().float()]
)
@pytest.mark.parametrize(("method", "load"), USES)
def test_the_same_weights_in_any_precision(folder: Path, method: str, load: str, change: Callable):
    LOADERS[load](change(fresh()), folder / f"{method}.safetensors")


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "random": lambda: fresh(seed=1),
    "trained": lambda: create_model(BackboneConfig("tiny"), seed=0),
    "one block": changed("visual.transformer.resblocks.2.mlp.c_fc.weight", 0.05),
    "a norm": changed("ln_final.weight", 0.05),
    "a bias": changed("transformer.resblocks.0.attn.in_proj_bias", 0.05),
    "the scale": changed("logit_scale", 0.05),
    "tokens": changed("token_embedding.weight", 0.05),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(("method", "load"), USES)
def test_other_weights(folder: Path, method: str, load: str, other: str):
    path = folder / f"{method}.safetensors"
    with pytest.raises(UserError) as caught:
        LOADERS[load](OTHERS[other](), path)
    assert str(caught.value) == (
        f"{path} is made for tiny with other frozen weights (backbone.pretrained=weights.safetensors) than this model has; "
        f"load those weights, or pass insist=True"
    )
    LOADERS[load](OTHERS[other](), path, insist=True)


@pytest.mark.parametrize(("method", "load"), USES)
def test_another_activation(folder: Path, method: str, load: str):
    path = folder / f"{method}.safetensors"
    with pytest.raises(UserError, match=r"is made for tiny with GELU, and this model has another activation; .*force_quick_gelu=False"):
        LOADERS[load](with_quick_gelu(fresh()), path)
    LOADERS[load](with_quick_gelu(fresh()), path, insist=True)


@pytest.mark.parametrize(("method", "load"), USES)
def test_a_file_of_an_earlier_version(folder: Path, method: str, load: str, tmp_path: Path):
    tensors, metadata = tensor_files.open_tensors(folder / f"{method}.safetensors")
    known = {name: value for name, value in metadata.items() if not name.startswith("backbone.") and name != "classes"}
    save_file(tensors, tmp_path / "old.safetensors", known)
    LOADERS[load](fresh(seed=1), tmp_path / "old.safetensors")
    LOADERS[load](with_quick_gelu(fresh()), tmp_path / "old.safetensors")


@pytest.mark.parametrize(
    ("said", "taken"), [("", True), ("2:later", True), ("1:", False), ("1:!", False), ("1:AAAA", False), ("1:AAAAAA==", False)]
)
def test_a_fingerprint_that_is_none(folder: Path, tmp_path: Path, said: str, taken: bool):
    tensors, metadata = tensor_files.open_tensors(folder / "promptfl.safetensors")
    save_file(tensors, tmp_path / "f.safetensors", metadata | {"backbone.fingerprint": said, "classes": "{"})
    if taken:
        assert pfedmma.load_client(fresh(), tmp_path / "f.safetensors").classes == ()
    else:
        with pytest.raises(UserError, match="other frozen weights"):
            pfedmma.load_client(fresh(), tmp_path / "f.safetensors")


def test_a_checkpoint_of_an_earlier_version(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = manifest.Progress.from_json
    monkeypatch.setattr(manifest.Progress, "from_json", lambda value: read({k: v for k, v in value.items() if k != "backbone"}))
    export([str(folder / "pfedmma"), "--client", "1", "--out", str(tmp_path / "old.safetensors")])
    _, metadata = tensor_files.open_tensors(tmp_path / "old.safetensors")
    assert metadata["backbone"] == "tiny" and not [name for name in metadata if name.startswith("backbone.")]


@pytest.mark.parametrize("wrong", [3, [], "x", {"fingerprint": 3}])
def test_a_manifest_that_says_something_else(folder: Path, wrong: Any):
    run = RunFolder(folder / "promptfl")
    progress = manifest.read_manifest(manifest.folder_of(run.checkpoints, 1)).progress
    with pytest.raises(manifest.Damaged, match="frozen weights"):
        manifest.Progress.from_json(progress.to_json() | {"backbone": wrong})


def test_saved_again(folder: Path, tmp_path: Path):
    again = tmp_path / "again.safetensors"
    first = tensor_files.open_tensors(folder / "pfedmma.safetensors")[1]
    for clip in (fresh(), fresh().half()):
        pfedmma.save_adapter(pfedmma.load_adapter(clip, folder / "pfedmma.safetensors"), again)
        assert tensor_files.open_tensors(again)[1] == first
    pfedmma.save_adapter(pfedmma.load_adapter(fresh(seed=1), folder / "pfedmma.safetensors", insist=True), again)
    pfedmma.load_adapter(fresh(seed=1), again)  # it is of that one now
    with pytest.raises(UserError, match=r"is made for tiny with other frozen weights than this model has"):
        pfedmma.load_adapter(fresh(), again)


def test_a_file_without_a_fingerprint_gets_one(tmp_path: Path):
    path = specimens.put(tmp_path / "adapter.safetensors", specimens.good_adapter())
    pfedmma.save_adapter(pfedmma.load_adapter(copy.deepcopy(specimens.clip()), path), tmp_path / "new.safetensors")
    other = copy.deepcopy(specimens.clip())
    other.visual.proj.add_(1)
    with pytest.raises(UserError, match="other frozen weights"):
        pfedmma.load_adapter(other, tmp_path / "new.safetensors")


def test_on_no_device_nothing_is_compared(folder: Path):
    pfedmma.load_adapter(fresh().to("meta"), folder / "pfedmma.safetensors")


def test_the_fingerprint_stays_what_it_is():
    """It is in people's files: of the shipped weights, whatever changes here."""
    found = FrozenWeights.from_backbone(Backbone.freeze(create_model(BackboneConfig("tiny"), seed=0)), "auto")
    assert (found.pretrained, found.activation) == ("auto", "gelu")
    assert found.fingerprint.startswith("1:")
    numbers = base64.b64decode(found.fingerprint[2:])[8:]  # but for the scale, which has been through exp and log
    assert hashlib.sha256(numbers).hexdigest() == "a0af848c89a59992ed6d8cc3229fa086df3fd711052f73288eb548195cade0a6"


def test_the_text_tower_may_be_a_module_of_its_own():
    """As in models that open_clip makes with ``force_custom_text``."""
    with torch.random.fork_rng(devices=[]):
        custom = open_clip.create_model(f"local-dir:{Path(create_model.__code__.co_filename).parent / 'tiny'}", force_custom_text=True)
    plain = create_model(BackboneConfig("tiny"), seed=0)
    assert hasattr(custom, "text") and not hasattr(plain, "text")
    assert FrozenWeights.from_backbone(Backbone.freeze(plain)).has_numbers_of(Backbone.freeze(custom.eval()))
