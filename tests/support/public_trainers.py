"""Trainers that keep several of our tensors in one parameter, take more than images, or send tensors to a GPU by its name.

Beside `tests.support.public_code`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.support.public_code import Batch, Step

ALL = slice(None)
Places = Mapping[str, tuple[str, int | slice]]  # our name -> their parameter, and which of its rows


@dataclass(frozen=True)
class Theirs:
    """Their ``model``, where our tensors lie in it, and how it ``answers`` images [B,3,S,S] with logits and takes a step on a batch."""

    model: nn.Module
    places: Places
    answers: Callable[[Tensor], Tensor]
    backward: Callable[[Batch], Any]

    def step(self, tensors: Mapping[str, Tensor], batch: Batch) -> Step:
        """Logits in their evaluation mode with our ``tensors``, and the gradients of one batch in their training mode."""
        with torch.no_grad():
            for name, part in self.parts(lambda parameter: parameter).items():
                part.copy_(tensors[name])
            self.model.eval()
            logits = self.answers(batch.images)
        self.model.train()
        self.backward(batch)
        return Step(logits, self.parts(lambda parameter: parameter.grad))

    def parts(self, of: Callable[[nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
        """What ``of`` gives of each parameter, by our names."""
        found = {name: (of(self.model.get_parameter(their)), rows) for name, (their, rows) in self.places.items()}
        return {name: whole[rows] for name, (whole, rows) in found.items() if whole is not None}


def as_dict(batch: Batch) -> dict[str, Tensor]:
    """A batch as Dassl's loaders give it."""
    return {"img": batch.images, "label": batch.labels}


@contextlib.contextmanager
def without_gpu() -> Iterator[None]:
    """Within it, tensors that are sent to a GPU stay where they are."""
    to = Tensor.to

    def stay(tensor: Tensor, *args: Any, **named: Any) -> Tensor:
        return tensor if args and args[0] == "cuda" else to(tensor, *args, **named)

    with mock.patch.object(Tensor, "to", stay), mock.patch.object(Tensor, "cuda", lambda tensor: tensor):
        yield


def einops() -> dict[str, ModuleType]:
    """The package ``einops`` with the one pattern of ``repeat`` that is used: a new first axis."""
    module = ModuleType("einops")

    def repeat(x: Tensor, pattern: str, b: int) -> Tensor:
        assert pattern == "n d -> b n d"
        return x.expand(b, *x.shape)

    module.repeat = repeat  # type: ignore[attr-defined]
    return {"einops": module}
