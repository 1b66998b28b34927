"""Other authors' public code beside ours: found where it is laid out, given a small CLIP, and taken through one step.

Nothing of their code is here. Their modules are imported by their own names and forgotten again; what they import of Dassl and of OpenAI's
package beside the model is stood in for. tests/public_code/README.md says where the repositories are and how to lay them out.

Shape legend: B images, K classes, S pixels a side.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.methods import registry
from pfedmma.methods.base import SEEDS, Method
from pfedmma.methods.forward import Forward
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.rules import Given
from tests.support.random_clip import random_clip

VARIABLE = "PFEDMMA_PUBLIC_CODE"
BOUND = 1e-5  # the largest relative difference: of the largest number of a tensor, in fp32
NAMES = ("cat", "red_fish", "very long name of a thing", "fern")  # prompts of several lengths
SIDE = 32  # pixels of a side
VISION = {"image_size": SIDE, "patch_size": 8, "width": 128, "head_width": 64, "layers": 3}
TEXT = {"context_length": 77, "width": 128, "heads": 2, "layers": 3}  # their heads are 64 wide, and read 77 tokens
EMBEDDING = 64
DASSL = ("", ".config", ".data", ".engine", ".engine.trainer", ".evaluation", ".metrics", ".optim", ".utils")


# Finding and importing theirs


def repository(name: str) -> Path:
    """The folder of a repository ``owner/name``; without it the test is skipped."""
    root = os.environ.get(VARIABLE)
    if not root:
        pytest.skip(f"{VARIABLE} names no folder with other authors' code; tests/public_code/README.md says how to lay it out")
    folder = Path(root) / name.replace("/", "-")
    if not folder.is_dir():
        pytest.skip(f"${VARIABLE} has no folder {folder.name}; tests/public_code/README.md says where it is from")
    return folder


def load(folder: Path, name: str, stand_ins: Mapping[str, ModuleType] | None = None) -> ModuleType:
    """The module ``name`` of the repository in ``folder``, which imports ``stand_ins`` where their names are its own.

    Nothing of it stays importable, and nothing is written into the folder.
    """
    with _importing(folder, dassl() | openai_clip(folder) | dict(stand_ins or {})):
        return importlib.import_module(name)


@contextlib.contextmanager
def _importing(folder: Path, stand_ins: Mapping[str, ModuleType]) -> Iterator[None]:
    """Within it, imports find ``stand_ins``, then what lies in ``folder``."""
    hidden = {name.partition(".")[0] for name in stand_ins} | {path.stem for path in folder.iterdir()}
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in hidden}
    path, wrote = list(sys.path), sys.dont_write_bytecode
    for name in before:
        del sys.modules[name]
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, wrote
        for name in [name for name in sys.modules if name.partition(".")[0] in hidden]:
            del sys.modules[name]
        sys.modules.update(before)


# What theirs imports


class TrainerX:
    """What a step takes of Dassl's trainer: gradients are left where they are, and no step is made."""

    def __init__(self, model: nn.Module, cfg: Any, **more: Any) -> None:
        self.model, self.cfg, self.device = model, cfg, torch.device("cpu")
        self.batch_idx, self.num_batches = 0, 2  # after the last batch the learning rate would change
        vars(self).update(more)

    def model_backward_and_update(self, loss: Tensor, names: Any = None) -> None:
        loss.backward()


class _Registry:
    def register(self, *names: str) -> Callable[[type], type]:
        return lambda trainer: trainer


class _Dassl(ModuleType):
    """A module of Dassl that has any name; but for a few, nothing that it has can be called."""

    TrainerX = TrainerX
    TRAINER_REGISTRY = _Registry()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    @staticmethod
    def compute_accuracy(*args: Any) -> list[Tensor]:
        return [torch.zeros(())]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def unused(*args: Any, **named: Any) -> None:
            raise NotImplementedError(f"{self.__name__}.{name} is stood in for")

        return unused


def dassl() -> dict[str, ModuleType]:
    """Dassl under the names that it is imported by, as a package of its own or inside a repository."""
    return {name: _Dassl(name) for name in ("Dassl", *(prefix + part for prefix in ("dassl", "Dassl.dassl") for part in DASSL))}


class Tokenizer:
    """OpenAI's, as far as they use it."""

    def encode(self, text: str) -> list[int]:
        return open_clip.SimpleTokenizer().encode(text)


def openai_clip(folder: Path) -> dict[str, ModuleType]:
    """OpenAI's package ``clip``: beside the model, which is the repository's own, only its tokenizer."""
    package, functions, tokenizer = (ModuleType(name) for name in ("clip", "clip.clip", "clip.simple_tokenizer"))
    package.__path__ = [str(folder / "clip")]
    for module in (package, functions):
        module.tokenize = open_clip.tokenize  # type: ignore[attr-defined]
    package.clip, package.simple_tokenizer = functions, tokenizer  # type: ignore[attr-defined]
    tokenizer.SimpleTokenizer = Tokenizer  # type: ignore[attr-defined]
    return {module.__name__: module for module in (package, functions, tokenizer)}


# One CLIP for both


def small_clip(vision: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None, embedding: int = EMBEDDING) -> nn.Module:
    """A small random CLIP with OpenAI's activation. Its weights are numbers of fp16, as theirs pass through fp16 when they are read."""
    clip = random_clip({**VISION, **(vision or {})}, {**TEXT, **(text or {})}, embedding, spread=0.02, quick_gelu=True)
    for parameter in clip.parameters():
        parameter.copy_(parameter.half())
    return clip


def their_clip(model: ModuleType, clip: nn.Module, *details: Any) -> nn.Module:
    """The CLIP of their module ``clip.model``, in fp32 and frozen, with the weights of ``clip``; ``details``: what else it asks for."""
    weights = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    return model.build_model(weights, *details).float().requires_grad_(False)


def plain_clip(clip: nn.Module) -> nn.Module:
    """`their_clip` of OpenAI's model as it is, which FedOTP's repository holds beside its own."""
    return their_clip(load(repository("HongxiaLee/FedOTP"), "clip.model"), clip, {"trainer": "PromptFL"})


def our_method(clip: nn.Module, **settings: Any) -> Method:
    """The method that ``settings`` of `MethodConfig` describe, on the same CLIP."""
    return registry.build(MethodConfig(**settings), Backbone.freeze(clip, "small"))


def config(**trainer: Mapping[str, Any]) -> Any:
    """What a trainer reads of its configuration: its own section, the precision, and the size of images."""
    sections = {name: SimpleNamespace(**{"PREC": "fp32", **own}) for name, own in trainer.items()}
    sizes, data = SimpleNamespace(SIZE=(SIDE, SIDE)), SimpleNamespace(NAME="Caltech101", USERS=4)
    return SimpleNamespace(TRAINER=SimpleNamespace(**sections), INPUT=sizes, DATASET=data)


# One step of both


@dataclass(frozen=True)
class Batch:
    """Normalised pixels [B,3,S,S] and labels [B]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Step:
    """Logits [B,K] before a step, and the gradients of its loss by our names."""

    logits: Tensor
    gradients: Mapping[str, Tensor]


Place = str | tuple[str, int | slice]  # a parameter of theirs, or one and which part of it along the first axis
Places = Mapping[str, Place]  # by our names


def drawn_batch(images: int = 6, classes: int = len(NAMES)) -> Batch:
    """Noise, with labels in turn."""
    generator = rng.generator(0, "images")
    return Batch(torch.randn(images, 3, SIDE, SIDE, generator=generator), torch.arange(images) % classes)


def drawn_tensors(method: Method, spread: float = 0.1) -> dict[str, Tensor]:
    """Random tensors of one client, all of which matter."""
    generator = rng.generator(0, "drawn")
    return {name: spread * torch.randn(shape, generator=generator) for name, shape in method.shapes.items()}


def our_step(method: Method, tensors: Mapping[str, Tensor], batch: Batch, names: Sequence[str] = NAMES, given: Given | None = None) -> Step:
    """Our step of one client, through the driver that trains."""
    forward = Forward.from_prompts(method, GENERIC_TEMPLATE, names)
    leaves = {name: tensor.clone().unsqueeze(0).requires_grad_() for name, tensor in tensors.items()}
    state = leaves | forward.fixed(leaves, given or Given())
    stem, count = forward.image_stem(batch.images), len(batch.labels)
    with torch.no_grad():
        logits = forward.logits(state, stem, forward.text_features(state))[0]
    work = (stem, batch.labels.unsqueeze(0), torch.full((1, count), 1 / count))
    _, flat = forward.gradients(state | {SEEDS: torch.zeros(1, dtype=torch.int64)}, list(leaves.values()), work, lambda losses: losses)
    assert flat is not None
    parts = flat[0].split([tensor.numel() for tensor in tensors.values()])
    return Step(logits, {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)})


def put(model: nn.Module, tensors: Mapping[str, Tensor], theirs: Places) -> None:
    """Give their ``model`` our ``tensors``."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            own = _at(model.get_parameter(_name(theirs[name])), theirs[name])
            own.copy_(tensor.view_as(own))


def gradients_of(model: nn.Module, tensors: Mapping[str, Tensor], theirs: Places) -> dict[str, Tensor]:
    """The gradients that a step has left in their ``model``, by our names and in the shapes of our ``tensors``; 0 where it left none."""
    found = {name: model.get_parameter(_name(theirs[name])).grad for name in tensors}
    return {
        name: torch.zeros_like(tensors[name]) if grad is None else _at(grad, theirs[name]).view_as(tensors[name])
        for name, grad in found.items()
    }


def _name(place: Place) -> str:
    return place if isinstance(place, str) else place[0]


def _at(tensor: Tensor, place: Place) -> Tensor:
    return tensor if isinstance(place, str) else tensor[place[1]]


def their_step(trainer: Any, batch: Batch, tensors: Mapping[str, Tensor], theirs: Places, **named: Any) -> Step:
    """A step of their ``trainer`` on its model with our ``tensors``, and its logits in evaluation before."""
    put(trainer.model, tensors, theirs)
    with torch.no_grad():
        logits = trainer.model.eval()(batch.images)
    trainer.model.train().zero_grad()
    trainer.forward_backward(batch={"img": batch.images, "label": batch.labels}, **named)
    return Step(logits, gradients_of(trainer.model, tensors, theirs))


# Comparing


def difference(found: Tensor, wanted: Tensor) -> float:
    """max |found - wanted| / max |wanted|; where nothing but 0 is wanted, max |found|."""
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / (wanted.abs().max() or 1.0))


def assert_same_step(ours: Step, theirs: Step, bound: float = BOUND, zero: Collection[str] = ()) -> None:
    """Logits and every gradient are the same up to ``bound``; ``pytest -rP`` shows how near they are.

    ``zero``: tensors whose gradient is 0 but for rounding; they are measured by the largest gradient of all.
    """
    assert ours.gradients.keys() == theirs.gradients.keys()
    largest = max(float(grad.abs().max()) for grad in theirs.gradients.values())
    found = {"logits": difference(ours.logits, theirs.logits)}
    for name, grad in ours.gradients.items():
        wanted = theirs.gradients[name]
        found[name] = float(torch.stack([grad, wanted]).abs().max()) / largest if name in zero else difference(grad, wanted)
    worst = max(found, key=lambda name: found[name])
    print(f"largest relative difference: {found['logits']:.1e} in logits, {found[worst]:.1e} in all ({worst})")
    assert all(value <= bound for value in found.values()), {name: f"{value:.1e}" for name, value in found.items() if value > bound}
