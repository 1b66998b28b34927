"""Public code that is no trainer of Dassl's, or sends tensors to a GPU by its name; beside `tests.support.public_code`.

Shape legend: B images, K classes, S pixels a side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any
from unittest import mock

from torch import Tensor, nn
from torch.nn import functional as F


class Answering:
    """A trainer by the cross-entropy of what ``model`` answers: ``answers`` makes logits [B,K] of images [B,3,S,S]."""

    def __init__(self, model: nn.Module, answers: Callable[[Tensor], Tensor]) -> None:
        self.model, self.answers = model, answers
        model.forward = answers  # what a step asks

    def forward_backward(self, batch: Mapping[str, Tensor]) -> None:
        F.cross_entropy(self.answers(batch["img"]), batch["label"]).backward()


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
