"""Weights from a local file: tensors and nothing else, so that a file from a stranger can at worst be refused."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pfedmma.clip import tensor_names
from pfedmma.clip.activation import QUICK_GELU, beside
from pfedmma.clip.file_kinds import HEAD, NoWeights, is_safetensors, refuse_other_kinds
from pfedmma.system.errors import UserError

OF_OPENAI = ("input_resolution", "context_length", "vocab_size")  # numbers in its archives that are no weights
KEYS = ("state_dict", "model_state_dict", "model", "module")  # where training programs keep a model's weights
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by open_clip's names. ``activation``: what the file or its config says of it, empty where they say nothing."""

    tensors: dict[str, Tensor]
    activation: str


def read(path: str, allow_torchscript: bool) -> Weights:
    """The weights in a file: safetensors, or a checkpoint of ``torch.save``, of which tensors and plain values alone are read.

    Safetensors are known by their content, whatever the suffix. A TorchScript archive (what OpenAI published) holds code and is taken
    only with ``allow_torchscript``. Prefixes of wrappers are left out, and the layout of transformers becomes open_clip's.

    Raises:
        UserError: a TorchScript archive that is not allowed.
        NoWeights: anything else that cannot be used; the message is what is wrong with the file, and what would be right.
    """
    state = tensor_names.without_wrappers(_tensors(path, allow_torchscript))
    # Only archives of OpenAI's own code have these numbers, and that code knows quick GELU alone.
    of_openai = state.keys() >= set(OF_OPENAI)
    state = {name: tensor for name, tensor in state.items() if name not in OF_OPENAI}
    of_transformers = tensor_names.is_of_transformers(state)
    if of_transformers:
        state = tensor_names.from_transformers(state)
    return Weights(state, QUICK_GELU if of_openai else beside(path, of_transformers))


def _tensors(path: str, allow_torchscript: bool) -> dict[str, Tensor]:
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise NoWeights(f"it cannot be read: {error.strerror}") from None
    if is_safetensors(head):
        return _of_safetensors(path)
    refuse_other_kinds(head)
    if path.endswith(".safetensors"):  # which torch.load would go by
        raise NoWeights("it is no safetensors file, whatever its name says; rename it to *.pt if it is a checkpoint of torch.save")
    zipped = head.startswith(_ZIP)
    if zipped and _is_torchscript(path):
        if not allow_torchscript:
            raise UserError(
                f"backbone.pretrained: '{path}' is a TorchScript archive, which can hold code; "
                f"give its weights as safetensors, or set backbone.allow_torchscript=true if you trust where it comes from"
            )
        try:
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        except RuntimeError:
            raise NoWeights("it is no TorchScript archive that this version of torch reads, or cut short") from None
    return _of_torch(_load(path, zipped))


def _of_safetensors(path: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        said = str(error)
        short = "incomplete" in said.lower() or "InvalidHeaderLength" in said
        raise NoWeights("it is cut short; copy or download it again" if short else "it is no whole safetensors file") from None


def _load(path: str, zipped: bool) -> Any:
    try:
        # Mapped, a storage cannot reach beyond the file, whatever size the checkpoint claims for it.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except MemoryError:
        raise
    except Exception as error:  # of many kinds, with advice that must not be followed
        if found := re.search(r"GLOBAL ([\w.]{1,60})", str(error)):
            raise NoWeights(
                f"it holds a Python object ({found[1]}), and only tensors and plain values are read; "
                f"save the weights alone, as by torch.save(model.state_dict(), FILE)"
            ) from None
        raise NoWeights("it is neither safetensors nor a checkpoint of torch.save, or it is cut short; copy or download it again") from None


def _of_torch(content: Any) -> dict[str, Tensor]:
    """The tensors of what ``torch.save`` wrote: a state dict, or one below a key of a training program."""
    if isinstance(content, Mapping):
        content = next((content[key] for key in KEYS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise NoWeights("it holds no weights by name; give a state dict")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise NoWeights(f"{str(name)[:60]!a} in it is no tensor; give a state dict")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise NoWeights(f"the tensor {tensor_names.shown(name)} in it is larger than what is stored of it")
    return dict(content)


def _is_torchscript(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise NoWeights("it begins as a zip archive and is cut short or damaged; copy or download it again") from None
    last = {name.rsplit("/", 1)[-1] for name in names}
    if "data.pkl" not in last:
        first = tensor_names.shown(names[0]) if names else "none"
        raise NoWeights(f"it is a zip archive of other files ({first}); unpack it and give the file of weights in it")
    return "constants.pkl" in last
