"""Weights from a local file: tensors and nothing else, so that a file from a stranger can at worst be refused."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from safetensors.torch import load_file
from torch import Tensor, nn

from pfedmma.system.errors import UserError

_OF_OPENAI = ("input_resolution", "context_length", "vocab_size")  # numbers in its archives that are no weights
_ZIP = b"PK\x03\x04"


def load_into(model: nn.Module, path: str, allow_torchscript: bool) -> None:
    """Put the weights of a file into an open_clip CLIP, position embeddings resized where the image or the context has another size.

    A file ``*.safetensors``, or a checkpoint of ``torch.save``, of which tensors and plain values alone are read. A TorchScript archive
    (what OpenAI published) holds code and is taken only with ``allow_torchscript``.

    Raises:
        UserError: a TorchScript archive that is not allowed.
        Exception: of many kinds, from torch, safetensors and open_clip, for a file that cannot be read or does not fit.
    """
    state = read(path, allow_torchscript)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    if "logit_scale" in state:  # one number, with or without an axis of its own
        state["logit_scale"] = state["logit_scale"].reshape(own["logit_scale"].shape)
    for name in own.keys() & state.keys():  # before anything is computed of what does not fit
        if name.endswith("positional_embedding") and state[name].shape[1:] != own[name].shape[1:]:
            raise ValueError(f"its {name} is {list(state[name].shape)}, the model's {list(own[name].shape)}")
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    model.load_state_dict(state)


def read(path: str, allow_torchscript: bool) -> dict[str, Tensor]:
    """{name: tensor} of a file; see `load_into`."""
    if path.endswith(".safetensors"):
        return load_file(path)
    with open(path, "rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP
    if zipped and _is_torchscript(path):
        if not allow_torchscript:
            raise UserError(
                f"backbone.pretrained: '{path}' is a TorchScript archive, which can hold code; "
                f"give its weights as safetensors, or set backbone.allow_torchscript=true if you trust where it comes from"
            )
        state = dict(torch.jit.load(path, map_location="cpu").state_dict())
        return {name: tensor for name, tensor in state.items() if name not in _OF_OPENAI}
    # Mapped, a storage cannot reach beyond the file, whatever size the checkpoint claims for it.
    content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):  # of a training program
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError("it holds no weights by name")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"'{str(name)[:60]}' in it is no tensor")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"the tensor {name[:60]} in it is larger than what is stored of it")
    prefix = "module." if next(iter(content)).startswith("module.") else ""  # of DistributedDataParallel
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def _is_torchscript(path: str) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.rsplit("/", 1)[-1] == "constants.pkl" for name in archive.namelist())
