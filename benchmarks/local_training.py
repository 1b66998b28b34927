"""What local training costs beside the plain path and beside the machine's matrix products, all measured in one run.

    python benchmarks/local_training.py [--model ViT-B-32] [--precision fp32|bf16] [--clients 1,4,10] [--compile] [--graphs] [--evaluation]
        [KEY=VALUE ...]

Measured: one local step (both towers, loss, gradients, SGD) on images that lie on the device; of the plain path (the oracle in
tests/support/oracle.py), one client at a time; of `LocalTraining.step`, one client at a time and several in a stack; and large matrix
products, for the machine's peak. ``--compile`` and ``--graphs`` (on a GPU) measure the steps once more, through torch.compile and as CUDA
graphs; with both, also together. Settings of the backbone, the method and the optimizer are those of a run, as ``backbone.tf32=true``.
``--evaluation`` measures the test of all clients on base and novel classes instead: the plain path encodes everything anew for each
client (and its own classes once more, for Local) and is timed for one client a repeat; `Evaluator.table` serves them all.

The variants take turns, repeat by repeat, so that a drift of the machine meets all of them; times are medians, ratios are medians of the
ratios within a repeat. FLOP/s are those of the necessary arithmetic (benchmarks/arithmetic.py), whatever a variant executes.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import arithmetic
import torch
from machine import machine, publish
from plain_path import PlainPath
from programs import device_from, require_at_least
from torch import Tensor
from variants import COUNTED, MEASURED, Variant, in_turn, products, summary, table

from pfedmma import rng
from pfedmma.accuracy.evaluator import EvaluationConfig, Evaluator
from pfedmma.clip.backbone import PRECISIONS
from pfedmma.clip.loading import create_model, frozen
from pfedmma.config import schema as configuration
from pfedmma.config.schema import Config
from pfedmma.cost.step import class_names
from pfedmma.data.partition.base_to_novel import split_classes
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source, Split
from pfedmma.engine.batches import Batch, Batches, LocalWork
from pfedmma.engine.graphs import Graphs
from pfedmma.engine.local import LocalTraining
from pfedmma.methods.compiled import Compiled
from pfedmma.methods.forward import Forward
from pfedmma.methods.pfedmma import MultiModalAdapters
from pfedmma.stack.answers import Answers
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.optim import LossScale
from pfedmma.stack.pool import Pool
from pfedmma.stack.start import Start
from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main
from pfedmma.system.memory import keep_freed_memory

PLAIN = "plain path"
COMPILED, GRAPH = ", compiled", ", graph"
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}  # of the first loss, relative to the plain path's


SECTIONS = "backbone.", "method.", "optimizer."  # of the settings of a run that are read here


@dataclass(frozen=True)
class Setting:
    """What is measured: ``clients`` share a pass at most; ``images``: of each of the two test sets."""

    config: Config
    clients: int
    batch: int
    classes: int
    images: int
    device: torch.device
    ways: tuple[str, ...] = ("",)  # in which a step is taken: nothing, COMPILED, GRAPH or both added to a name


class Bench:
    """One frozen CLIP, the clients' initial adapters and images of noise, for the plain path and for this project."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.device = setting, setting.device
        config, self.precision = setting.config, setting.config.backbone.precision
        clip = create_model(config.backbone, seed=0).to(self.device)
        self.backbone = frozen(config.backbone, clip, self.device)
        self.method = MultiModalAdapters.from_settings(config.method, self.backbone)
        self.layout = self.method.layout
        self.optimizer = config.optimizer
        names = class_names(2 * setting.classes)
        self.base, self.novel = names[: setting.classes], names[setting.classes : 2 * setting.classes - 1]
        size = self.backbone.preprocess.size
        count = max(setting.clients * setting.batch, 2 * setting.images)
        gen = rng.generator(0, "noise")
        pictures = torch.randint(256, (count, 3, size, size), generator=gen, dtype=torch.uint8)
        split = Split(torch.zeros(count, dtype=torch.long), pictures.__getitem__)  # labels are not read from it
        source = Source("noise", names, {"train": split, "test": split})
        self.pixels = Pixels(source, self.backbone.preprocess, "none", self.device)
        self.labels = torch.randint(setting.classes, (setting.clients, setting.batch), generator=gen).to(self.device)
        self.plain = PlainPath(clip, self.method.spec, self.pixels, self.precision, self.optimizer)

    @cached_property
    def answers(self) -> Answers:
        """Every client with its own random adapters; what is exchanged is the first client's."""
        packed = [self.layout.pack(self.method.initial(rng.generator(0, "state", i))) for i in range(self.setting.clients)]
        states = ClientStates(self.layout, Start(packed[0]), self.optimizer, self.device)
        states.scatter(range(len(packed)), torch.stack(packed).to(self.device))
        return Answers(states, states.initial[: self.layout.exchanged_size], Pool(), reads=0)

    def tensors(self, client: int) -> dict[str, Tensor]:
        """One client's adapters {name: [*shape]}."""
        return {name: tensor[0] for name, tensor in self.answers.tensors([client]).items()}

    def shapes(self, names: Sequence[str]) -> tuple[arithmetic.TowerShape, arithmetic.TowerShape]:
        return arithmetic.towers(self.backbone, self.method.spec, self.backbone.prompts(GENERIC_TEMPLATE, names))

    @cached_property
    def training(self) -> LocalTraining:
        forward = Forward.from_prompts(self.method, GENERIC_TEMPLATE, self.base)
        work = LocalWork(1, self.setting.batch, self.optimizer, seed=0)
        return LocalTraining(self.layout, Batches(forward, self.pixels, work))

    @cached_property
    def compiled(self) -> LocalTraining:
        """The same through torch.compile."""
        batches = self.training.batches
        forward = dataclasses.replace(batches.forward, compiled=Compiled(self.setting.batch, told=_aside))
        return dataclasses.replace(self.training, batches=dataclasses.replace(batches, forward=forward))

    def step_of(self, clients: int, way: str = "") -> Callable[[], Tensor]:
        """`LocalTraining.step` of the first ``clients`` clients, on images prepared once; gives their losses. ``way``: see `Setting`."""
        training, graphs = self.compiled if COMPILED in way else self.training, Graphs() if GRAPH in way else None
        ids, states = range(clients), self.answers.states
        params, state = states.gather(ids, self.answers.shared), states.gather_optimizer(ids)
        labels = self.labels[:clients]
        weights = torch.full(labels.shape, 1.0 / self.setting.batch, device=self.device)
        batch = Batch(self.normalised(clients * self.setting.batch), labels, weights, torch.arange(clients, device=self.device))
        scale = LossScale(clients, self.device, enabled=False)
        inputs = params, state, {}, batch, scale
        return lambda: training.step(*inputs) if graphs is None else graphs(training.step, 0, inputs)

    def plain_step(self) -> Callable[[], Tensor]:
        """The first client's step on the plain path, with the same images."""
        return self.plain.step(self.tensors(0), self.normalised(self.setting.batch), self.labels[0], self.base)

    def normalised(self, count: int) -> Tensor:
        return self.pixels.normalise(self.pixels.fitted("train", torch.arange(count)))

    @cached_property
    def federated(self) -> FederatedData:
        """The clients divide the base classes; both test sets in order of their images."""
        count, classes = self.setting.images, self.setting.classes
        base = EvaluationSet("test", self.base, torch.arange(count), torch.arange(count) % classes)
        novel = EvaluationSet("test", self.novel, torch.arange(count, 2 * count), torch.arange(count) % len(self.novel))
        nothing = torch.empty(0, dtype=torch.long)
        members = []
        for number, own in enumerate(split_classes(classes, self.setting.clients)):
            test = torch.isin(base.labels, torch.tensor(own)).nonzero().squeeze(1)
            members.append(Client(number, own, nothing, nothing, test))
        return FederatedData(tuple(members), base, novel, GENERIC_TEMPLATE)

    def evaluate(self) -> Tensor:
        """The accuracies of all clients, as the system finds them."""
        evaluator = Evaluator(self.federated, self.pixels, EvaluationConfig().batch_size, self.setting.clients)
        return evaluator.table(self.method, self.answers, self.federated.clients)

    def plain_evaluation(self, client: Client) -> list[float]:
        """Local, Base and Novel of one client on the plain path."""
        base, novel = self.federated.base, self.federated.novel
        assert novel is not None
        own = dataclasses.replace(base, indices=base.indices[client.test], labels=base.labels[client.test])
        return self.plain.accuracies(self.tensors(client.id), (own, base, novel))


def training_variants(bench: Bench, widths: Sequence[int]) -> list[Variant]:
    """The plain path, one client at a time, and the stacks; refuses to time paths that do not compute the same."""
    setting = bench.setting
    visual, text = bench.shapes(bench.base)
    steps = {PLAIN: (1, bench.plain_step())}
    for way in setting.ways:
        steps |= {stack_name(width) + way: (width, bench.step_of(width, way)) for width in widths}
    losses = {name: step().flatten()[0].item() for name, (_, step) in steps.items()}
    refuse_difference(losses, TOLERANCE[bench.precision])
    return [
        Variant(
            name,
            step,
            width * setting.batch,
            sum(arithmetic.training_step(visual, text, width, setting.batch, setting.classes).values()),
        )
        for name, (width, step) in steps.items()
    ]


def _aside(text: str) -> None:
    """A line on stderr: stdout ends with the report."""
    print(text, file=sys.stderr, flush=True)


def stack_name(width: int) -> str:
    return "one at a time" if width == 1 else f"stack of {width} clients"


def refuse_difference(losses: dict[str, float], tolerance: float) -> None:
    """Raise a `UserError` if a variant's first loss is not the plain path's."""
    plain = losses[PLAIN]
    for name, loss in losses.items():
        if not abs(loss - plain) <= tolerance * abs(plain):
            raise UserError(f"{name} has a first loss of {loss}, the plain path of {plain}; times of unequal work mean nothing")


def evaluation_variants(bench: Bench) -> list[Variant]:
    """The plain path for one client, another one each time; and the system for all of them."""
    setting, clients = bench.setting, bench.federated.clients
    flops = 0
    for tests in bench.federated.sets().values():
        counts = arithmetic.evaluation(*bench.shapes(tests.classes), len(clients), len(tests.indices), len(tests.classes))
        flops += sum(counts.values())
    turn = iter(range(10**9))
    found = bench.evaluate()[:, :3].tolist(), [bench.plain_evaluation(client) for client in clients[:1]]
    apart = max(abs(a - b) for ours, plain in zip(*found, strict=False) for a, b in zip(ours, plain, strict=True) if a == a)
    if bench.precision == "fp32" and apart > 100.0 / setting.images + 1e-9:
        raise UserError(f"the accuracies differ by {apart} points; times of unequal work mean nothing")
    images = 2 * setting.images
    return [
        Variant(PLAIN, lambda: bench.plain_evaluation(clients[next(turn) % len(clients)]), images, flops // len(clients)),
        Variant(f"all {len(clients)} clients together", bench.evaluate, images * len(clients), flops),
    ]


def peaks(bench: Bench, together: int) -> list[Variant]:
    """Large products in the precision of the frozen layers, those of an MLP for the tokens of ``together`` images."""
    tower = bench.backbone.visual
    return products(bench.device, PRECISIONS[bench.precision], together * len(tower.positions), tower.width)


def widths_of(text: str) -> list[int]:
    """A list such as 1,4,10 -> the widths, 1 always among them, ascending."""
    try:
        widths = sorted({1, *map(int, text.split(","))})
    except ValueError:
        raise UserError(f"--clients: '{text}' is no list of numbers such as 1,4,10") from None
    if widths[0] < 1:
        raise UserError(f"--clients: {widths[0]} clients cannot share a pass; 1 or more can")
    return widths


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="tiny, or an open_clip ViT; its weights are random")
    parser.add_argument("--precision", default="fp32", choices=tuple(TOLERANCE))
    parser.add_argument("--clients", default="1,4,10", help="clients in one pass, one measurement each; 1 is always measured")
    parser.add_argument("--batch", type=int, default=32, help="images a client and step")
    parser.add_argument("--classes", type=int, default=51, help="base classes; there is one novel class less")
    parser.add_argument("--repeats", type=int, default=0, help="turns; 0: 3 on the CPU, 10 on a GPU")
    parser.add_argument("--steps", type=int, default=0, help="steps in a row under one clock; 0: 1 on the CPU, 5 on a GPU")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--compile", action="store_true", help="measure the steps through torch.compile, too")
    parser.add_argument("--graphs", action="store_true", help="measure the steps as CUDA graphs, too; needs a GPU")
    parser.add_argument("--evaluation", action="store_true", help="measure evaluation instead of training")
    parser.add_argument("--images", type=int, default=0, help="images of each test set; 0: 64 on the CPU, 512 on a GPU")
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="settings of the backbone, the method or the optimizer, as of a run"
    )
    args = parser.parse_intermixed_args()
    require_at_least(args, batch=1, classes=2, repeats=0, steps=0, images=0)
    return args


def config_of(args: argparse.Namespace) -> Config:
    """The settings of a run with what is measured here. Raises a `UserError` where one is given that nothing here reads."""
    for given in args.settings:
        if given.startswith("backbone.compile"):
            raise UserError(f"{given}: give --compile instead, which measures the steps with and without it")
        if not given.startswith(SECTIONS):
            raise UserError(f"{given}: nothing here reads it; settings that begin with {', '.join(SECTIONS)} are read")
    own = [f"backbone.name={args.model}", "backbone.pretrained=none", f"backbone.precision={args.precision}"]
    return configuration.load(None, [*own, *args.settings])


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """The options with ``clients`` and ``device`` read, and the numbers of this device where none are given."""
    args.device, args.clients = device_from(args.device), widths_of(args.clients)
    gpu = args.device.type == "cuda"
    if args.graphs and not gpu:
        raise UserError("--graphs: CUDA graphs need a GPU, and the benchmark runs on the CPU")
    args.ways = tuple(c + g for c in ("", COMPILED)[: 1 + args.compile] for g in ("", GRAPH)[: 1 + args.graphs])
    args.repeats, args.images = args.repeats or (10 if gpu else 3), args.images or (512 if gpu else 64)
    args.steps = 1 if args.evaluation else args.steps or (5 if gpu else 1)
    return args


def measure(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Time all variants and show what they come to."""
    gpu, most = args.device.type == "cuda", args.clients[-1]
    variants = evaluation_variants(bench) if args.evaluation else training_variants(bench, args.clients)
    best = peaks(bench, together=args.batch if args.evaluation or not gpu else most * args.batch)
    # On a CPU the comparison of the first results was the warm-up.
    times = in_turn(best + variants, args.device, args.repeats, args.steps, warmup=2 * gpu)
    anchors = {"plain": PLAIN} | ({} if args.evaluation else {"one_at_a_time": stack_name(1)})
    found = summary(variants, best, times, anchors)
    what = f"evaluation of {most} clients, {args.images} + {args.images} images" if args.evaluation else f"a local step, batch {args.batch}"
    about = " ".join([args.model, bench.precision, *args.settings])
    title = f"{what}, {args.classes} classes\n{about}, {args.device.type}, {torch.get_num_threads()} threads"
    show(table(title, found, anchors))
    return found


def described(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """The setting, for the report."""
    setting = {"model": args.model, "precision": bench.precision, "settings": args.settings, "clients": args.clients}
    setting |= {"batch": args.batch, "classes": args.classes, "text_tokens": bench.shapes(bench.base)[1].tokens, "repeats": args.repeats}
    return setting | ({"images_a_test_set": args.images, "plain_path_timed_for_clients_a_repeat": 1} if args.evaluation else {})


def main() -> None:
    args = with_defaults(arguments())
    if args.device.type == "cpu":
        keep_freed_memory()  # as the main job does; the plain path has the same
    setting = Setting(config_of(args), args.clients[-1], args.batch, args.classes, args.images, args.device, args.ways)
    bench = Bench(setting)
    found = measure(bench, args)
    report = {
        "benchmark": "evaluation" if args.evaluation else "local_training",
        "date": datetime.date.today().isoformat(),
        **machine(args.device, "open_clip"),
        **described(bench, args),
        "measured": MEASURED,
        "counted": COUNTED,
        **found,
    }
    publish(report, args.json)


if __name__ == "__main__":
    run_main(main)
