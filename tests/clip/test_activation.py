"""Weights that were trained with quick GELU run with it wherever the file says so; where it cannot be known, a line says that."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

from pfedmma.clip.loading import BackboneConfig, create_model
from tests.clip.test_weight_files import in_transformers_layout
from tests.support.scripted import OPENAI, scripted


def activation(path: Path | str, name: str = "tiny", allow: bool = False) -> type:
    model = create_model(BackboneConfig(name, str(path), allow_torchscript=allow), seed=0)
    kinds = {type(block.mlp.gelu) for tower in (model.visual, model) for block in tower.transformer.resblocks}
    assert len(kinds) == 1
    return kinds.pop()


def test_an_archive_of_openai(tiny_clip: nn.Module, tmp_path: Path):
    state = dict(tiny_clip.state_dict())
    assert activation(scripted(state | OPENAI, tmp_path / "openai.pt"), allow=True) is QuickGELU
    assert activation(scripted(state, tmp_path / "other.pt"), allow=True) is nn.GELU


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_that_was_taken_out_of_one(prefix: str, tiny_clip: nn.Module, tmp_path: Path):
    state = {prefix + name: tensor for name, tensor in (tiny_clip.state_dict() | OPENAI).items()}
    torch.save(state, tmp_path / "w.pt")
    assert activation(tmp_path / "w.pt") is QuickGELU
    save_file(state, tmp_path / "w.safetensors")
    assert activation(tmp_path / "w.safetensors") is QuickGELU


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"vision_config": {"hidden_act": "quick_gelu"}, "text_config": {"hidden_act": "quick_gelu"}}, QuickGELU),
        ({"vision_config": {}, "text_config": {}}, QuickGELU),  # transformers' default
        ({"vision_config": {"hidden_act": "gelu"}, "text_config": {"hidden_act": "gelu"}}, nn.GELU),
        ({}, nn.GELU),
    ],
)
def test_the_config_beside_a_file_of_transformers(config: dict, wanted: type, tiny_clip: nn.Module, tmp_path: Path):
    save_file(in_transformers_layout(tiny_clip.state_dict()), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert activation(tmp_path / "model.safetensors") is wanted


@pytest.mark.parametrize(("said", "wanted"), [({"quick_gelu": True}, QuickGELU), ({"quick_gelu": False}, nn.GELU), ({}, nn.GELU)])
def test_the_config_beside_a_file_of_open_clip(said: dict, wanted: type, tiny_clip: nn.Module, tmp_path: Path):
    save_file(dict(tiny_clip.state_dict()), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": said}))
    assert activation(tmp_path / "open_clip_model.safetensors") is wanted


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_cfg": 3}', '{"model_cfg": {"quick_gelu": "yes"}}'])
def test_a_config_that_says_nothing(text: str, tiny_clip: nn.Module, tmp_path: Path):
    save_file(dict(tiny_clip.state_dict()), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(text)
    assert activation(tmp_path / "open_clip_model.safetensors") is nn.GELU


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for ViT-B-32 in half precision, from nowhere in particular."""
    path = tmp_path_factory.mktemp("large") / "w.safetensors"
    model = open_clip.create_model("ViT-B-32", device="meta")
    save_file({name: torch.zeros(x.shape, dtype=torch.float16) for name, x in model.state_dict().items()}, path)
    return path


def test_what_cannot_be_known_is_said(large: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    assert activation(large, "ViT-B-32") is nn.GELU
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("warning: backbone.pretrained: ")
    assert "w.safetensors" in line and "backbone.name=ViT-B-32-quickgelu" in line
    assert activation(large, "ViT-B-32-quickgelu") is QuickGELU
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "1")  # rank 0 says it for all
    activation(large, "ViT-B-32")
    assert capsys.readouterr().err == ""


def test_no_line_where_nothing_is_unknown(tiny_clip: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture):
    save_file(dict(tiny_clip.state_dict()), tmp_path / "w.safetensors")
    activation(tmp_path / "w.safetensors")  # there is no tiny-quickgelu
    assert capsys.readouterr().err == ""


def test_a_name_that_the_file_contradicts_is_said(tiny_clip: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture):
    model = open_clip.create_model("ViT-B-32", device="meta")
    state = {name: torch.zeros(x.shape, dtype=torch.float16) for name, x in model.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    assert activation(tmp_path / "open_clip_model.safetensors", "ViT-B-32-quickgelu") is QuickGELU  # as it was asked for
    assert "says that its weights were trained with GELU, and ViT-B-32-quickgelu has quick GELU" in capsys.readouterr().err
