"""Adapter files: one client's adapters as safetensors, in the orientation of `torch.nn.Linear`.

Tensors ``visual.{b}.down.weight|bias``, ``visual.{b}.up.*``, ``text.{b}.down.*``, ``text.{b}.up.*``, ``shared.{b}.*`` (b counts blocks
from 1; ``shared`` goes by the visual tower's number); metadata ``format``, ``dim``, ``scale``, ``activation`` (of the adapters),
``rescale``, ``backbone``, and where they are known ``backbone.pretrained|activation|fingerprint``, ``template``, ``classes`` (JSON).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from pfedmma.methods.adapters.multimodal import ACTIVATIONS, AdapterSpec
from pfedmma.portable.made_for import MadeFor
from pfedmma.system.errors import UserError
from pfedmma.system.files import write_atomically
from pfedmma.system.tensor_files import open_tensors, require_numbers

FORMAT = "pfedmma-adapter/1"


def write(path: str | Path, tensors: Mapping[str, Tensor], spec: AdapterSpec, made_for: MadeFor) -> None:
    """Write one client's tensors {name: [*shape]}; an existing file is replaced as a whole."""
    metadata = {
        "format": FORMAT,
        "dim": str(spec.dim),
        "scale": repr(spec.scale),
        "activation": spec.activation,
        "rescale": str(spec.rescale).lower(),
    } | made_for.to_metadata()
    plain = {name: tensors[name].detach().cpu().contiguous() for name in spec.shapes()}
    write_atomically(Path(path), save(plain, metadata))


def read(path: str | Path) -> tuple[dict[str, Tensor], AdapterSpec, MadeFor]:
    """(tensors, spec, what it was made for) of an adapter file.

    Raises:
        UserError: no such file, not safetensors, another format, tensors or metadata that do not fit together.
    """
    try:
        tensors, metadata = open_tensors(path)
    except FileNotFoundError:
        raise UserError(f"there is no adapter file {path}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a safetensors file: {str(error)[:200]}") from None
    if metadata.get("format") != FORMAT:
        found = str(metadata.get("format"))[:40]
        raise UserError(f"{path} has format '{found}', not '{FORMAT}'; write adapter files with python -m pfedmma.export")
    return tensors, _spec(path, tensors, metadata), MadeFor.from_metadata(metadata)


def _spec(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> AdapterSpec:
    try:
        scale = float(metadata["scale"])
        if not (math.isfinite(scale) and scale >= 0 and metadata["activation"] in ACTIVATIONS):
            raise ValueError("scale must be a number from 0 on, activation one of " + ", ".join(ACTIVATIONS))
        rescale = metadata.get("rescale", "true")
        if rescale not in ("true", "false"):
            raise ValueError("rescale must be true or false")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        spec = AdapterSpec.from_shapes(shapes, scale=scale, activation=metadata["activation"], rescale=rescale == "true")
        if metadata.get("dim", str(spec.dim)) != str(spec.dim):
            raise ValueError(f"dim is said to be {metadata['dim'][:20]}, but the tensors have {spec.dim}")
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is no whole adapter: {error}") from None
    require_numbers(path, tensors)
    return spec
