"""Weights of other tools are read where that needs no guess; any other file is refused in one line that says what would be right."""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.system.errors import UserError

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
ALONE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}


def in_transformers_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an open_clip CLIP as transformers' CLIPModel names and turns it."""
    made = {
        "text_model.embeddings.position_ids": torch.arange(16)[None],
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        "visual_projection.weight": state["visual.proj"].T.contiguous(),
        "text_projection.weight": state["text_projection"].T.contiguous(),
    }
    for name, tensor in state.items():
        found = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if found is None:
            made |= {ALONE[name]: tensor} if name in ALONE else {}
            continue
        layer = f"{'vision' if found[1] else 'text'}_model.encoder.layers.{found[2]}."
        if (joined := re.fullmatch(r"attn\.in_proj_(weight|bias)", found[3])) is not None:
            made |= {f"{layer}self_attn.{part}_proj.{joined[1]}": x.clone() for part, x in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            place, kind = found[3].rsplit(".", 1)
            made[f"{layer}{BLOCK[place]}.{kind}"] = tensor
    return made


def logits(model: nn.Module) -> Tensor:
    frozen = Backbone.freeze(model)
    texts = frozen.prompts("a photo of a {}.", ["red circle", "blue star"]).tokens
    with torch.no_grad():
        return model.encode_image(PIXELS, normalize=True) @ model.encode_text(texts, normalize=True).T * frozen.logit_scale


def load(path: Path | str, name: str = "tiny", allow: bool = False) -> nn.Module:
    return create_model(BackboneConfig(name, str(path), allow_torchscript=allow), seed=5)


def assert_the_same_model(one: nn.Module, other: nn.Module) -> None:
    wanted = other.state_dict()
    assert one.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in one.state_dict().items())
    torch.testing.assert_close(logits(one), logits(other))


def torch_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


# Read.


@pytest.mark.parametrize("form", ["safetensors", "bin", "wrapped", "half"])
def test_the_clip_of_transformers(form: str, tiny_clip: nn.Module, tmp_path: Path):
    state = in_transformers_layout(tiny_clip.state_dict())
    if form == "half":  # position ids stay whole numbers
        save_file({name: x.half() if x.is_floating_point() else x for name, x in state.items()}, path := tmp_path / "model.safetensors")
        loaded = load(path).state_dict()
        assert all(torch.equal(loaded[name], x.half().float()) for name, x in tiny_clip.state_dict().items())
        return
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    if form == "safetensors":
        save_file(state, path, {"format": "pt"})
    else:
        torch.save({f"_orig_mod.clip.{name}": x for name, x in state.items()} if form == "wrapped" else state, path)
    assert_the_same_model(load(path), tiny_clip)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module.", "_fsdp_wrapped_module.", "model.", "clip_model."],
)
@pytest.mark.parametrize("form", ["safetensors", "alone", "state_dict", "model", "model_state_dict"])
def test_prefixes_of_wrappers(prefix: str, form: str, tiny_clip: nn.Module, tmp_path: Path):
    state = {prefix + name: tensor for name, tensor in tiny_clip.state_dict().items()}
    if form == "safetensors":
        save_file(state, tmp_path / "w")
    else:
        torch.save(state if form == "alone" else {"epoch": 3, form: state}, tmp_path / "w")
    assert_the_same_model(load(tmp_path / "w"), tiny_clip)


def test_towers_that_were_compiled_alone(tiny_clip: nn.Module, tmp_path: Path):
    names = {name: re.sub(r"^(visual|transformer)\.", r"\1._orig_mod.", name) for name in tiny_clip.state_dict()}
    save_file({names[name]: tensor for name, tensor in tiny_clip.state_dict().items()}, tmp_path / "w.safetensors")
    assert_the_same_model(load(tmp_path / "w.safetensors"), tiny_clip)


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w"])
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_other_suffixes(name: str, form: str, tiny_clip: nn.Module, tmp_path: Path):
    state = dict(tiny_clip.state_dict())
    (tmp_path / name).write_bytes(torch_bytes(state) if form == "torch" else save(state))
    assert_the_same_model(load(tmp_path / name), tiny_clip)


def test_paths_are_expanded(tiny_clip: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    save_file(dict(tiny_clip.state_dict()), tmp_path / "w.safetensors")
    for path in ("~/w.safetensors", "$WEIGHTS/w.safetensors", "${WEIGHTS}/w.safetensors"):
        assert_the_same_model(load(path), tiny_clip)
    with pytest.raises(UserError, match=r"w\.safetensors' into ViT-B-32: .*size mismatch"):
        load("~/w.safetensors", "ViT-B-32")


# Refused.


def reason(path: Path, name: str = "tiny") -> str:
    with pytest.raises(UserError) as caught:
        load(path, name)
    message = str(caught.value)
    assert message.startswith("backbone.pretrained: ") and len(message) < 600 and message.isprintable()
    assert "weights_only" not in message and "Error" not in message
    return message


def without(*starts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: tensor for name, tensor in state.items() if not name.startswith(starts)}


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 605157884\n"
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"it is empty; copy or download it again$"),
    "LFS": (LFS, r"it is a Git LFS pointer, not the file that it stands for; fetch that with git lfs pull$"),
    "HTML": (b"\n<!DOCTYPE html><html><body>404</body></html>", r"it is an HTML page, .*download the file itself$"),
    "HTML without a type": (b"<html>\n", r"it is an HTML page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', r"it is an XML page"),
    "index": (json.dumps({"metadata": {}, "weight_map": {"a": "b"}}).encode(), r"it is an index of weights that lie in several files"),
    "text": (b"Entry not found", r"it is a text \('Entry not found'\), no weights"),
    "gzip": (b"\x1f\x8b" + b"\0" * 99, r"it is compressed by gzip; unpack it$"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, r"it is an HDF5 file"),
    "GGUF": (b"GGUF" + b"\0" * 99, r"it is a GGUF file"),
    "namespace": (
        torch_bytes({"state_dict": {}, "args": argparse.Namespace(lr=1)}),
        r"it holds a Python object \(argparse\.Namespace\), and only tensors and plain values are read; save the weights alone",
    ),
    "noise": (bytes(range(128, 256)) * 9, r"it is neither safetensors nor a checkpoint of torch\.save"),
    "plain": (torch_bytes({"lr": 1.0, "epoch": 3}), r"'lr' in it is no tensor"),
    "optimizer": (torch_bytes({"optimizer": {"state": {}}, "epoch": 3}), r"'optimizer' in it is no tensor"),
    "list": (torch_bytes([torch.zeros(3)]), r"it holds no weights by name"),
}


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "bin"])
@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_weights(kind: str, suffix: str, tmp_path: Path):
    content, says = FILES[kind]
    (tmp_path / f"w.{suffix}").write_bytes(content)
    message = reason(tmp_path / f"w.{suffix}")
    if suffix == "safetensors" and kind in ("namespace", "noise", "plain", "optimizer", "list"):
        says = r"it is no safetensors file, whatever its name says; rename it to \*\.pt if it is a checkpoint of torch\.save"
    assert re.search(says, message), message


@pytest.mark.parametrize("form", ["safetensors", "zip", "old"])
@pytest.mark.parametrize("part", [0.001, 0.5, 0.999])
def test_a_file_that_is_cut_short(form: str, part: float, tiny_clip: nn.Module, tmp_path: Path):
    state = dict(tiny_clip.state_dict())
    if form == "safetensors":
        whole = save(state)
    else:
        torch.save(state, tmp_path / "whole", _use_new_zipfile_serialization=form == "zip")
        whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: int(len(whole) * part)])
    assert re.search(r"cut short", reason(tmp_path / "w.pt"))


def test_a_zip_of_something_else(tmp_path: Path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("clip/model.safetensors", b"x" * 99)
    assert "it is a zip archive of other files (clip/model.safetensors); unpack it" in reason(tmp_path / "w.zip")


def test_a_folder(tmp_path: Path):
    for name in ("tiny", "ViT-B-32"):
        assert "is a folder; give the file of weights in it" in reason(tmp_path, name)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("visual."), r"it lacks visual\.\* \(\d+ tensors\); is it of a whole CLIP\?|it lacks visual\.\* \(\d+ tensors\)"),
        (without("logit_scale"), r"it lacks logit_scale"),
        (without("transformer.resblocks.5."), r"it lacks transformer\.resblocks\.5\.\* \(12 tensors\)"),
        (lambda state: state | {"text_decoder.x": torch.zeros(1)}, r"it holds text_decoder\.x, which tiny has not"),
        (lambda state: {f"x.{name}": t for name, t in without("logit_scale")(state).items()}, r"it lacks .*it holds x\.\* \(\d+ tensors\)"),
        (
            lambda state: state | {"visual.proj": torch.zeros(128, 3)},
            r"size mismatch for visual\.proj: \[128, 3\] in it, \[128, 64\] in tiny",
        ),
        (lambda state: state | {"visual.proj": torch.zeros(128, 64, dtype=torch.int8)}, r"its visual\.proj is of int8"),
        (
            lambda state: state | {"visual.positional_embedding": torch.zeros(12, 128)},
            r"its visual\.positional_embedding is no square grid",
        ),
        (lambda state: state | {"logit_scale": torch.zeros(2)}, r"size mismatch for logit_scale: \[2\] in it, \[\] in tiny"),
    ],
)
def test_what_does_not_fit_names_the_telling_tensors(change: Callable, says: str, tiny_clip: nn.Module, tmp_path: Path):
    save_file(change(dict(tiny_clip.state_dict())), tmp_path / "w.safetensors")
    message = reason(tmp_path / "w.safetensors")
    assert re.search(says, message), message


def test_parts_of_transformers_clip(tiny_clip: nn.Module, tmp_path: Path):
    state = in_transformers_layout(tiny_clip.state_dict())
    save_file({name: x for name, x in state.items() if name.startswith("vision_model.")}, tmp_path / "vision.safetensors")
    assert "it is in the layout of transformers and lacks visual_projection.weight" in reason(tmp_path / "vision.safetensors")
    state.pop("text_model.encoder.layers.3.self_attn.k_proj.bias")
    save_file(state, tmp_path / "hole.safetensors")
    assert "lacks text_model.encoder.layers.3.self_attn.k_proj.bias" in reason(tmp_path / "hole.safetensors")


def test_weights_of_another_model_name_that_model(tmp_path: Path):
    with torch.random.fork_rng(devices=[]):
        model = open_clip.create_model("ViT-S-32")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    message = reason(tmp_path / "w.pt", "ViT-M-32")
    assert "size mismatch for visual.conv1.weight" in message and message.endswith("it fits backbone.name=ViT-S-32")


def test_a_tag_for_tiny_names_the_setting():
    with pytest.raises(UserError) as caught:
        create_model(BackboneConfig("tiny", "openai"), seed=0)
    message = str(caught.value)
    assert message.startswith("backbone.pretrained: 'openai' names weights of open_clip's own models, not of tiny")
    assert "backbone.pretrained=auto" in message and "backbone.name" in message
