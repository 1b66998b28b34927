"""Local steps of few clients as CUDA graphs: a thousand kernels that the host starts at once, where one or two clients keep a GPU less busy
than starting them keeps the host.

A graph is a step, from the forward pass to the optimizer, of fixed shapes on tensors of its own, into which those of each step are copied
and from which they are copied back; both take microseconds. It is made when shapes come a second time, and tried once beside the plain
step. Whatever fails runs as it would without.

Shape legend: k clients of a step, P parameters of one client.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pfedmma.engine.batches import Batch
from pfedmma.stack.optim import LossScale, OptimizerState
from pfedmma.stack.rules import State
from pfedmma.system.console import warn

CHOICES = AUTO, OFF = "auto", "off"
# Clients; more keep a GPU busy for longer than the host takes to start their kernels: on an H200, ViT-B/16 in bf16 takes 5.6 ms a client,
# and its host took 29 to 45 ms for a step.
WIDEST = 6
MOST = 8  # graphs of a run
WARM_UP = 2  # steps before a capture: what is made at the first use of a kernel must not be captured
ALIKE = 1e-2  # of the change of a step, by which a graph may differ from the plain step: its kernels may add in another order


@dataclass(frozen=True)
class Inputs:
    """What `pfedmma.engine.local.LocalTraining.step` reads, and changes in place: parameters, optimizer state, the scale's factor."""

    params: Tensor
    state: OptimizerState
    fixed: State
    batch: Batch
    scale: LossScale

    def tensors(self) -> list[Tensor]:
        """All of them; `changed` ones first."""
        images: list[Tensor] = []
        if isinstance(self.batch.images, Tensor):
            images.append(self.batch.images)
        else:
            self.batch.images.each(lambda t: images.append(t) or t)  # type: ignore[func-returns-value]
        return [*self.changed(), *self.fixed.values(), *images, self.batch.labels, self.batch.weights, self.batch.seeds]

    def changed(self) -> list[Tensor]:
        """The tensors that a step changes."""
        return [self.params, *self.state.values(), self.scale.factor]

    def copy(self) -> Inputs:
        """The same in memory of its own."""
        given = self.batch
        images = given.images.clone() if isinstance(given.images, Tensor) else given.images.each(torch.clone)
        scale = LossScale(0, self.params.device, self.scale.enabled)
        scale.factor = self.scale.factor.clone()
        state, fixed = ({name: t.clone() for name, t in of.items()} for of in (self.state, self.fixed))
        batch = replace(given, images=images, labels=given.labels.clone(), weights=given.weights.clone(), seeds=given.seeds.clone())
        return Inputs(self.params.clone(), state, fixed, batch, scale)


Step = Callable[[Tensor, OptimizerState, State, Batch, LossScale], Tensor]
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]  # a step without arguments -> what does it again


class Graph:
    """A captured step. ``inputs``: where it reads and writes."""

    def __init__(self, step: Step, inputs: Inputs, capture: Capture) -> None:
        self.inputs = own = inputs.copy()
        self.run = lambda: step(own.params, own.state, own.fixed, own.batch, own.scale)  # kept: the graph reads what it reads
        self.replay = capture(self.run)

    def __call__(self, inputs: Inputs) -> Tensor:
        """The losses [k] of the step, done on ``inputs``."""
        for to, come in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            to.copy_(come)
        losses = self.replay().clone()
        for to, come in zip(inputs.changed(), self.inputs.changed(), strict=True):
            to.copy_(come)
        return losses


class Graphs:
    """Runs steps as graphs where that can be done; remembers the graphs, and if they fail. ``capture``: how a graph is made."""

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = capture or CudaCapture()
        self.failed = False
        self._known: dict[Hashable, Graph | None] = {}  # shapes -> their graph, None where they have come once

    @classmethod
    def from_setting(cls, wanted: str, device: torch.device) -> Graphs | None:
        """From ``federation.graphs``; None where there are none."""
        return cls() if wanted == AUTO and device.type == "cuda" else None

    def __call__(self, step: Step, kind: Hashable, given: tuple[Tensor, OptimizerState, State, Batch, LossScale]) -> Tensor:
        """The losses [k] of the ``step``, done in place on what is ``given``. ``kind``: steps that do the same have one."""
        inputs = Inputs(*given)
        graph = self._graph(step, kind, inputs)
        return step(*given) if graph is None else graph(inputs)

    def _graph(self, step: Step, kind: Hashable, inputs: Inputs) -> Graph | None:
        key = (kind, inputs.scale.enabled, type(inputs.batch.images), *(t.shape for t in inputs.tensors()))
        if self.failed or len(inputs.params) > WIDEST or (key not in self._known and len(self._known) >= MOST):
            return None
        if key not in self._known:
            self._known[key] = None
        elif self._known[key] is None:
            self._known[key] = self._made(step, inputs)
        return self._known[key]

    def _made(self, step: Step, inputs: Inputs) -> Graph | None:
        """A graph that does what the plain step does; None, with a warning and for good, where there is none."""
        try:
            graph = Graph(step, inputs, self.capture)
            if _as_plain(graph, step, inputs):
                return graph
            reason = "it does not compute what the plain step does"
        except Exception as error:  # of the capture, and of whatever cannot be captured
            reason = f"{type(error).__name__}: " + str(error).partition("\n")[0][:200]
        self.failed = True
        self._known.clear()
        warn(f"federation.graphs: no CUDA graph of a local step: {reason}; training goes on without")
        return None


def _as_plain(graph: Graph, step: Step, inputs: Inputs) -> bool:
    """Whether ``graph`` changes the parameters as ``step`` does, on copies."""
    by_graph, plain = inputs.copy(), inputs.copy()
    graph(by_graph)
    step(plain.params, plain.state, plain.fixed, plain.batch, plain.scale)
    change = (plain.params - inputs.params).norm()
    return bool((by_graph.params - plain.params).norm() <= ALIKE * change)


class CudaCapture:
    """Captures steps as CUDA graphs, which share their memory: they run one after another, and what they leave is copied at once."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                run()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which bring images near, may go on meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            losses = run()

        def replay() -> Tensor:
            graph.replay()
            return losses

        return replay
