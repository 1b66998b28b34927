"""One client's model, of any method, on an ordinary open_clip model: from a file to a classifier.

A client file is safetensors: the method's tensors by name, ``others.<name>`` [E, *shape] what the client reads of E other clients;
metadata ``format``, ``version``, ``method`` (its settings as JSON), ``backbone``, ``template`` (of the class prompts), and where they are
known ``backbone.pretrained|activation|fingerprint``, ``classes`` (JSON), and ``plugin``, the file that registers its method.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import own_tokenizer
from pfedmma.data.sources.base import GENERIC_TEMPLATE, template_problem
from pfedmma.methods import registry
from pfedmma.methods.base import Method
from pfedmma.methods.pfedmma import MultiModalAdapters
from pfedmma.methods.registry import MethodConfig
from pfedmma.portable import adapter_file
from pfedmma.portable.adapted_clip import refuse_misfit
from pfedmma.portable.made_for import MadeFor
from pfedmma.portable.personal_clip import PersonalCLIP
from pfedmma.stack.rules import POOL, State
from pfedmma.system import options, tensor_files, untrusted
from pfedmma.system.errors import UserError
from pfedmma.system.files import write_atomically
from pfedmma.system.options import shown
from pfedmma.version import VERSION

FORMAT = "pfedmma-client/1"
_OTHERS = "others."


@dataclass(frozen=True)
class ClientFile:
    """One client: the settings of its method, its ``tensors``, what it reads of ``others``, and what it was made for."""

    method: MethodConfig
    tensors: State
    others: State
    made_for: MadeFor

    def write(self, path: str | Path) -> None:
        """Write the file; an existing one is replaced as a whole."""
        own = {} if self.method.own is None else {self.method.name: options.nested(self.method.own)}
        settings = json.dumps({"name": self.method.name} | own)
        metadata = {"format": FORMAT, "method": settings} | self.made_for.to_metadata()
        if origin := registry.entry_of(self.method.name).origin:
            metadata["plugin"] = Path(origin).name
        named = {**self.tensors, **{f"{_OTHERS}{name}": tensor for name, tensor in self.others.items()}}
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        write_atomically(Path(path), save(plain, metadata | {"version": VERSION}))

    @classmethod
    def from_tensors(cls, path: str | Path, found: State, metadata: Mapping[str, str]) -> ClientFile:
        """From what the file at ``path`` holds. Raises a `UserError` if it does not say its method's settings."""
        tensors = {name: tensor for name, tensor in found.items() if not name.startswith(_OTHERS)}
        others = {name.removeprefix(_OTHERS): tensor for name, tensor in found.items() if name.startswith(_OTHERS)}
        return cls(_settings(path, metadata), tensors, others, MadeFor.from_metadata(metadata))


def load_client(clip: Any, path: str | Path, template: str | None = None, insist: bool = False) -> PersonalCLIP:
    """A client's model from a client file or an adapter file.

    Args:
        clip: the open_clip CLIP that the run was trained on, on any device; it is frozen.
        path: a file written by ``python -m pfedmma.export``.
        template: class prompt with {} for the name; by default the run's own.
        insist: take a file although it was trained on other frozen weights, or with another activation, than ``clip`` has.

    Raises:
        UserError: an unusable file or template, one made for a model of another size, or, without ``insist``, for other frozen weights.
    """
    found, metadata = _read(path)
    made_for = MadeFor.from_metadata(metadata)
    template = template or metadata.get("template", GENERIC_TEMPLATE)
    _require_template(path, template)
    name = made_for.backbone or "this model"
    backbone = Backbone.freeze(clip.eval().requires_grad_(False), name, tokenizer=own_tokenizer(name))
    method: Method
    if metadata.get("format") == adapter_file.FORMAT:
        tensors, spec, _ = adapter_file.read(path)
        refuse_misfit(path, spec, backbone, made_for.backbone)
        method, others = MultiModalAdapters(backbone, spec, ("none",)), {}
    else:
        file = ClientFile.from_tensors(path, found, metadata)
        method, tensors, others = registry.build(file.method, backbone), dict(file.tensors), dict(file.others)
    _require(path, method, tensors, others)
    if not insist:
        made_for.refuse_other(path, backbone)
    return dataclasses.replace(PersonalCLIP.from_tensors(method, tensors, others, template), classes=made_for.classes)


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors, metadata = tensor_files.open_tensors(path)
    except FileNotFoundError:
        raise UserError(f"there is no client file {path}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a safetensors file: {str(error)[:200]}") from None
    if metadata.get("format") not in (FORMAT, adapter_file.FORMAT):
        found, by = str(metadata.get("format"))[:40], f", written by pfedmma {metadata['version'][:20]}" if "version" in metadata else ""
        raise UserError(f"{path} has format '{found}'{by}, not '{FORMAT}'; write client files with python -m pfedmma.export")
    return tensors, metadata


def _settings(path: str | Path, metadata: Mapping[str, str]) -> MethodConfig:
    try:
        tree = untrusted.parse_json(metadata["method"])
        if not isinstance(tree, dict):
            raise ValueError("no mapping")
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} does not say its method's settings ({error}); write client files with python -m pfedmma.export") from None
    if (plugin := metadata.get("plugin")) and tree.get("name") not in {**registry.BUILT_IN, **registry.REGISTERED}:
        raise UserError(f"{path} is of the method '{shown(tree.get('name'))}', which {shown(plugin)} registers; import that file first")
    try:
        return options.section(MethodConfig, tree, "method.")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _require_template(path: str | Path, template: str) -> None:
    if problem := template_problem(template):
        raise UserError(f"{path}: the class prompt '{template[:80]}' {problem}; write one with {{}} for the name")


def _require(path: str | Path, method: Method, tensors: State, read: State) -> None:
    """Raise a `UserError` unless the tensors are those of the method on this backbone."""
    shapes = {name: tuple(shape) for name, shape in method.shapes.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    pooled = {name for name, rule in method.exchange.items() if rule == POOL}
    counts = {name: tensor.shape[0] if tensor.dim() else 0 for name, tensor in read.items()}
    wrong += sorted(f"{_OTHERS}{name}" for name in (pooled ^ read.keys() if read else ()))
    wrong += sorted(
        f"{_OTHERS}{name}"
        for name, tensor in read.items()
        if tuple(tensor.shape[1:]) != shapes.get(name) or not 0 < counts[name] <= method.reads or len(set(counts.values())) > 1
    )
    if wrong:
        raise UserError(f"{path} does not fit {method.backbone.name}: tensor {wrong[0][:60]} is not of the shape that its method has there")
    tensor_files.require_numbers(path, {**tensors, **{f"{_OTHERS}{name}": tensor for name, tensor in read.items()}})
