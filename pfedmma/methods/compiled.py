"""The losses of a training pass through ``torch.compile``: fewer kernels, less memory traffic, the same numbers up to rounding.

A pass is traced whole, with its gradients. Each shape costs a compilation, so shapes do not vary: batches are filled up with images of
weight 0 to the batch size, or to half of it where that is enough, and the number of clients is left open, apart from 1, which torch always
takes for a shape of its own. A run compiles `MOST` times at most. Each shape is tried once beside the plain pass. What comes after the last
compilation, and whatever fails, runs as it would without.

Shape legend: C clients, B images a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from pfedmma import rng
from pfedmma.clip.loading import AUTO, ON
from pfedmma.clip.stems import Stem
from pfedmma.methods.base import Method
from pfedmma.stack.rules import State
from pfedmma.system.console import say, warn

MOST = 4  # compilations of a run
# Local steps of a run from which compiling is expected to pay. On an H200 two compilations took 112 s, and a step of ten clients at
# ViT-B/16 then 58 ms in place of 63, before it had a kernel for sums and norms: the paper's runs of 50 rounds have 300 steps.
WORTH = 20_000
ALIKE = 0.1  # of a gradient's length, by which a compiled pass may differ: bf16 rounds at other places; a wrong kernel is off by all of it
Done = tuple[Tensor, "Tensor | None"]  # losses [C], gradients [C,n]
Given = tuple[State, "Stem | Tensor", Tensor, Tensor]  # state, images, labels, weights


def losses(method: Method, text_stem: Any, state: State, images: Stem | Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Training losses [C] of a batch, see `pfedmma.methods.forward.Forward.losses`; what is traced."""
    stem = method.image_stem(images) if isinstance(images, Tensor) else images
    features = method.image_features(state, stem)
    return method.loss(state, features, method.text_features(state, text_stem), labels, weights)


class Compiled:
    """Runs `losses` compiled, as far as that goes. It counts its compilations, and remembers if they fail.

    Args:
        batch: the most images of a client in a batch.
        backend: of ``torch.compile``.
        told: hears of every compilation.
    """

    def __init__(self, batch: int, backend: str = "inductor", told: Callable[[str], None] = say) -> None:
        self.batch, self.backend, self.told = batch, backend, told
        self.count, self.failed = 0, False
        self._known: dict[Hashable, bool] = {}  # shape -> whether it is compiled
        self._traced: Callable[..., Tensor] | None = None

    @classmethod
    def from_setting(cls, wanted: str, device: torch.device, batch: int, steps: int, told: Callable[[str], None] = say) -> Compiled | None:
        """From ``backbone.compile``; None where nothing is compiled: by itself on GPUs alone, in runs of many ``steps``."""
        pays = device.type == "cuda" and steps >= WORTH
        return cls(batch, told=told) if wanted == ON or (wanted == AUTO and pays) else None

    def __call__(
        self,
        method: Method,
        text_stem: Any,
        batch: Given,
        finish: Callable[[Tensor], Done],
    ) -> Done | None:
        """``finish`` of the `losses` of a ``batch``, or None where they are not to be had compiled.

        ``finish`` takes the gradients, which are compiled, too, and fails where they do.
        """
        state, images, labels, weights = _no_views(*padded(batch, self.batch))
        shape = (len(labels) == 1, labels.shape[1], type(images), tuple(state))
        new = shape not in self._known
        if self.failed or not self._known.get(shape, self.count < MOST):
            return None
        if new and len(labels) > 1:
            _leave_clients_open(state, images, labels, weights)
        began = time.monotonic()
        try:
            with method.backbone.autocast():
                found = finish(self._function()(method, text_stem, state, images, labels, weights))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of tracing, of code generation, of the compiler behind it: each has its own
            self._given_up(shape, error)
            return None
        if new:
            self._known[shape] = True
            if not _as_plain(found, finish, method, text_stem, batch):
                self._warn_of("it does not compute what the plain pass does")
                return None
            what = f"{'one client' if len(labels) == 1 else 'any number of clients'}, batches of {labels.shape[1]}"
            self.told(f"compiled the training pass for {what} in {time.monotonic() - began:.1f} s")
        return found

    def _function(self) -> Callable[..., Tensor]:
        if self._traced is None:
            torch.compiler.assume_constant_result(rng.key)  # what it hashes is known when tracing
            self._traced = torch.compile(_flat_losses, backend=self._counted, fullgraph=True, dynamic=False)  # but for what is marked
        return self._traced

    def _counted(self, graph: Any, inputs: list[Tensor]) -> Any:
        """The backend, while there are compilations left."""
        if self.count >= MOST:
            raise RuntimeError(f"{MOST} compilations are enough for a run")
        self.count += 1
        return torch._dynamo.lookup_backend(self.backend)(graph, inputs)

    def _given_up(self, shape: Hashable, error: Exception) -> None:
        """Go on without: in this shape where no compilation is left, else in all."""
        if self.count >= MOST and "are enough for a run" in str(error):
            self._known[shape] = False
            return
        self._warn_of(f"{type(error).__name__}: " + str(error).strip().partition("\n")[0][:200])

    def _warn_of(self, reason: str) -> None:
        self.failed = True
        warn(f"backbone.compile: {reason}; training goes on without compiling")


def _as_plain(found: Done, finish: Callable[[Tensor], Done], method: Method, text_stem: Any, batch: Given) -> bool:
    """Whether a compiled pass has ``found`` what the plain one finds; taken for granted where memory takes only one of the two."""
    try:
        with method.backbone.autocast():
            plain = finish(losses(method, text_stem, *batch))
    except torch.OutOfMemoryError:
        return True
    (losses_found, grads), (wanted, wanted_grads) = found, plain
    if not bool(wanted.isfinite().all()):  # the run ends by itself
        return True
    alike = bool((losses_found - wanted).norm() <= ALIKE * (1.0 + wanted.norm()))  # losses may end near 0
    if grads is None or wanted_grads is None:
        return alike
    return alike and bool((grads - wanted_grads).norm() <= ALIKE * wanted_grads.norm())


def _flat_losses(method: Method, text_stem: Any, state: State, images: Stem | Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """`losses` of images [C,B,...]."""
    return losses(method, text_stem, state, of_each(images, lambda t: t.flatten(0, 1)), labels, weights)


def padded(batch: Given, size: int) -> Given:
    """A batch with images [C,B,...] in place of [C*B,...], filled up to ``size``, or half of it, with each client's first of weight 0."""
    state, images, labels, weights = batch
    clients, count = labels.shape
    half = -(-size // 2)
    missing = max(half if count <= half else size, count) - count

    def filled(t: Tensor) -> Tensor:
        return t if missing == 0 else torch.cat([t, t[:, :1].expand(-1, missing, *t.shape[2:])], dim=1)

    weights = torch.cat([weights, weights.new_zeros(clients, missing)], dim=1) if missing else weights
    return state, of_each(images, lambda t: filled(t.unflatten(0, (clients, -1)))), filled(labels), weights


def of_each(images: Stem | Tensor, change: Callable[[Tensor], Tensor]) -> Any:
    """Images, or their stem, with each tensor changed."""
    return change(images) if isinstance(images, Tensor) else images.each(change)


def _no_views(state: State, images: Stem | Tensor, *others: Tensor) -> tuple[Any, ...]:
    """The same tensors, but none that is known as a view of another: torch would compile anew where the other's shape differs."""

    def alone(t: Tensor) -> Tensor:
        return t if t.requires_grad else t.detach()

    return {name: alone(t) for name, t in state.items()}, of_each(images, alone), *map(alone, others)


def _leave_clients_open(state: State, images: Stem | Tensor, *others: Tensor) -> None:
    """Tell torch that the first axis of these tensors is of any length."""

    def mark(t: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(t, 0)
        return t

    of_each(images, mark)
    for tensor in (*state.values(), *others):
        mark(tensor)
