"""What local training costs beside the plain path and beside the machine's matrix products, all measured in one run.

    python benchmarks/local_training.py [--model ViT-B-32] [--precision fp32|bf16] [--clients 1,4,10] [--evaluation]

Measured: one local step (both towers, loss, gradients, SGD) on images that lie on the device; of the plain path in
tests/support/oracle.py, one client at a time; of `Trainer.step`, one client at a time and several in a stack; and large matrix
products, for the machine's peak.
``--evaluation`` measures the test of all clients on base and novel classes instead: the plain path encodes everything anew for each
client (and its own classes once more, for Local) and is timed for one client a repeat; `Evaluator.table` serves them all.

The variants take turns, repeat by repeat, so that a drift of the machine meets all of them; times are medians, ratios are medians of the
ratios within a repeat. FLOP/s are those of the necessary arithmetic (benchmarks/arithmetic.py), whatever a variant executes.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import arithmetic
import torch
from machine import machine, publish
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.accuracy.evaluator import EvaluationConfig, Evaluator
from pfedmma.clip.backbone import PRECISIONS, Backbone
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.data.partition.base_to_novel import split_classes
from pfedmma.data.partition.federated import Client, EvaluationSet, FederatedData
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source, Split
from pfedmma.data.sources.cifar import SUPERCLASSES
from pfedmma.engine.batches import Batch, LocalWork
from pfedmma.engine.local import Trainer
from pfedmma.methods.pfedmma import MultiModalAdapters
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import LossScale, OptimizerConfig
from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main
from pfedmma.system.memory import keep_freed_memory

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.support import oracle

SQUARES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # sides of the square products that the peak is looked for with
PLAIN_BATCH = 100  # images of a forward pass of the plain evaluation
PLAIN = "plain path"
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}  # of the first loss, relative to the plain path's
MEASURED = "variants in turn, repeat by repeat; medians of times, and of the ratios within a repeat; images already on the device"
COUNTED = "necessary matrix products by formula (benchmarks/arithmetic.py), the same for all variants of a table"

Work = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What is measured: ``clients`` share a pass at most; ``images``: of each of the two test sets."""

    model: str
    precision: str
    clients: int
    batch: int
    classes: int
    images: int
    device: torch.device


@dataclass(frozen=True)
class Variant:
    """One thing that is timed: ``work`` goes over ``images`` images, for which ``flops`` operations are necessary."""

    name: str
    work: Work
    images: int
    flops: int


class Bench:
    """One frozen CLIP, the clients' initial adapters and images of noise, for the plain path and for this project."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.device = setting, setting.device
        self.clip: Any = create_model(BackboneConfig(setting.model, "none"), seed=0).to(self.device)
        self.backbone = Backbone.freeze(self.clip, setting.model, setting.precision)
        self.method = MultiModalAdapters.preset(MethodConfig(), self.backbone)
        self.layout = Layout(self.method.shapes, self.method.exchange)
        self.optimizer = OptimizerConfig()
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

    @cached_property
    def store(self) -> ClientStore:
        """Every client with its own random adapters."""
        packed = [self.layout.pack(self.method.initial(rng.generator(0, "state", i))) for i in range(self.setting.clients)]
        store = ClientStore(self.layout, packed[0], self.optimizer, self.device)
        store.scatter(range(len(packed)), torch.stack(packed).to(self.device))
        return store

    def shapes(self, names: Sequence[str]) -> tuple[arithmetic.TowerShape, arithmetic.TowerShape]:
        return arithmetic.towers(self.backbone, self.method.spec, self.backbone.prompts(GENERIC_TEMPLATE, names))

    def plain_model(self, client: int) -> oracle.Adapters:
        """The client's adapters as ordinary modules."""
        config = MethodConfig()
        model = oracle.Adapters(self.clip, len(self.method.spec.pairs), config.dim, config.scale).to(self.device)
        for name, tensor in self.layout.views(self.store.gather([client])[0]).items():
            model.get_parameter(name).data.copy_(tensor)
        return model

    def autocast(self) -> torch.autocast:
        precision = self.setting.precision
        return torch.autocast(self.device.type, PRECISIONS[precision], enabled=precision != "fp32")

    @cached_property
    def trainer(self) -> Trainer:
        with self.backbone.autocast():
            text_stem = self.method.text_stem(self.backbone.prompts(GENERIC_TEMPLATE, self.base))
        work = LocalWork(1, self.setting.batch, self.optimizer, seed=0)
        return Trainer(self.backbone, self.method, self.layout, self.pixels, text_stem, work)

    def step_of(self, clients: int) -> Callable[[], Tensor]:
        """`Trainer.step` of the first ``clients`` clients, on images prepared once; answers their losses."""
        ids = range(clients)
        params, state = self.store.gather(ids), self.store.gather_optimizer(ids)
        labels = self.labels[:clients]
        weights = torch.full(labels.shape, 1.0 / self.setting.batch, device=self.device)
        batch = Batch(self.normalised(clients * self.setting.batch), labels, weights, torch.arange(clients, device=self.device))
        scale = LossScale(clients, self.device, enabled=False)
        return lambda: self.trainer.step(params, state, {}, batch, scale)

    def plain_step(self) -> Callable[[], Tensor]:
        """The first client's step on the plain path, with the same images."""
        model = self.plain_model(0)
        optimizer = oracle.new_optimizer(model, self.optimizer)
        tokens = oracle.prompts(self.clip, GENERIC_TEMPLATE, self.base).to(self.device)
        images, labels = self.normalised(self.setting.batch), self.labels[0]

        def step() -> Tensor:
            with self.autocast():
                loss = F.cross_entropy(oracle.logits(self.clip, model, images, tokens), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    def normalised(self, count: int) -> Tensor:
        return self.pixels.normalise(self.pixels.fitted("train", torch.arange(count)))

    @cached_property
    def federation(self) -> FederatedData:
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
        evaluator = Evaluator(self.backbone, self.federation, self.pixels, EvaluationConfig().batch_size, self.setting.clients)
        return evaluator.table(self.method, self.store, self.federation.clients)

    @torch.no_grad()
    def plain_evaluation(self, client: Client) -> list[float]:
        """Local, Base and Novel of one client: texts once a set, every image of every set."""
        model, federation = self.plain_model(client.id), self.federation
        assert federation.novel is not None
        base = federation.base
        own = dataclasses.replace(base, indices=base.indices[client.test], labels=base.labels[client.test])
        accuracies = []
        for images in (own, base, federation.novel):
            tokens = oracle.prompts(self.clip, GENERIC_TEMPLATE, images.classes).to(self.device)
            right = 0
            with self.autocast(), model.in_place():
                texts = self.clip.encode_text(tokens, normalize=True)
                for rows in torch.arange(len(images.indices)).split(PLAIN_BATCH):
                    pixels = self.pixels.normalise(self.pixels.fitted("test", images.indices[rows]))
                    features = self.clip.encode_image(pixels, normalize=True)
                    right += int(((features @ texts.T).argmax(dim=-1).cpu() == images.labels[rows]).sum())
            accuracies.append(100.0 * right / max(1, len(images.indices)))
        return accuracies


def class_names(count: int) -> tuple[str, ...]:
    """Names of everyday things, of the usual lengths."""
    things = [name for names in SUPERCLASSES.values() for name in names.split()]
    kinds = ["", "old ", "small ", "red ", "wooden "]
    names = [kind + thing for kind in kinds for thing in things]
    if count > len(names):
        raise UserError(f"--classes: there are names for {len(names) // 2} classes at most, not for {count // 2}")
    return tuple(names[:count])


def training_variants(bench: Bench, widths: Sequence[int]) -> list[Variant]:
    """The plain path, one client at a time, and the stacks; refuses to time paths that do not compute the same."""
    setting = bench.setting
    visual, text = bench.shapes(bench.base)
    steps = {PLAIN: (1, bench.plain_step())} | {stack_name(width): (width, bench.step_of(width)) for width in widths}
    losses = {name: step().flatten()[0].item() for name, (_, step) in steps.items()}
    refuse_difference(losses, TOLERANCE[setting.precision])
    return [
        Variant(
            name,
            step,
            width * setting.batch,
            sum(arithmetic.training_step(visual, text, width, setting.batch, setting.classes).values()),
        )
        for name, (width, step) in steps.items()
    ]


def stack_name(width: int) -> str:
    return "one at a time" if width == 1 else f"stack of {width} clients"


def refuse_difference(losses: dict[str, float], tolerance: float) -> None:
    plain = losses[PLAIN]
    for name, loss in losses.items():
        if not abs(loss - plain) <= tolerance * abs(plain):
            raise UserError(f"{name} has a first loss of {loss}, the plain path of {plain}; times of unequal work mean nothing")


def evaluation_variants(bench: Bench) -> list[Variant]:
    """The plain path for one client, another one each time; and the system for all of them."""
    setting, clients = bench.setting, bench.federation.clients
    flops = 0
    for tests in bench.federation.sets().values():
        counts = arithmetic.evaluation(*bench.shapes(tests.classes), len(clients), len(tests.indices), len(tests.classes))
        flops += sum(counts.values())
    turn = iter(range(10**9))
    found = bench.evaluate()[:, :3].tolist(), [bench.plain_evaluation(client) for client in clients[:1]]
    apart = max(abs(a - b) for ours, plain in zip(*found, strict=False) for a, b in zip(ours, plain, strict=True) if a == a)
    if setting.precision == "fp32" and apart > 100.0 / setting.images + 1e-9:
        raise UserError(f"the accuracies differ by {apart} points; times of unequal work mean nothing")
    images = 2 * setting.images
    return [
        Variant(PLAIN, lambda: bench.plain_evaluation(clients[next(turn) % len(clients)]), images, flops // len(clients)),
        Variant(f"all {len(clients)} clients together", bench.evaluate, images * len(clients), flops),
    ]


def peak_variants(bench: Bench, rows: int) -> list[Variant]:
    """Large products [m,k] @ [k,n] in the precision of the frozen layers: squares, and an MLP of ``rows`` tokens."""
    setting, width = bench.setting, bench.backbone.visual.width
    sizes = [(side, side, side) for side in SQUARES[setting.device.type]]
    sizes += [(rows, width, 4 * width), (rows, 4 * width, width)]
    variants = []
    for m, k, n in sizes:
        a, b = (torch.randn(size, device=setting.device).to(PRECISIONS[setting.precision]) for size in ((m, k), (n, k)))
        out = torch.empty(m, n, device=setting.device, dtype=a.dtype)
        times = max(1, 2 * 10**10 // arithmetic.matmul(m, k, n)) if setting.device.type == "cpu" else 20

        def product(a: Tensor = a, b: Tensor = b.T, out: Tensor = out, times: int = times) -> None:
            for _ in range(times):
                torch.mm(a, b, out=out)

        variants.append(Variant(f"{m} x {k} x {n}", product, 0, times * arithmetic.matmul(m, k, n)))
    return variants


def seconds(work: Work, device: torch.device, times: int) -> float:
    """Of ``times`` runs in a row, with nothing left to do on the device at either end; per run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / times


def in_turn(variants: Sequence[Variant], device: torch.device, repeats: int, times: int, warmup: int) -> dict[str, list[float]]:
    """Seconds of every variant in every repeat; after ``warmup`` repeats without a clock."""
    found: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for repeat in range(-warmup, repeats):
        for variant in variants:
            took = seconds(variant.work, device, times)
            if repeat >= 0:
                found[variant.name].append(took)
    return found


def summary(
    variants: Sequence[Variant], peaks: Sequence[Variant], times: dict[str, list[float]], anchors: dict[str, str]
) -> dict[str, Any]:
    """Rates of ``variants``, and how much faster an image is done than by each of the ``anchors`` {what it is: its variant}."""
    each = [{v.name: v.flops / times[v.name][i] for v in peaks} for i in range(len(times[PLAIN]))]
    best = [max(rates.values()) for rates in each]
    cost = {v.name: [t / v.images for t in times[v.name]] for v in variants}
    rows = []
    for v in variants:
        rates = [v.flops / t for t in times[v.name]]
        rows.append(
            {
                "name": v.name,
                "images": v.images,
                "necessary_flop": v.flops,
                "seconds": times[v.name],
                "images_per_s": v.images / statistics.median(times[v.name]),
                "flop_per_s": statistics.median(rates),
                "utilisation": statistics.median(a / b for a, b in zip(rates, best, strict=True)),
            }
            | {
                f"speedup_over_{what}": statistics.median(a / b for a, b in zip(cost[anchor], cost[v.name], strict=True))
                for what, anchor in anchors.items()
            }
        )
    products = {v.name: statistics.median(rates[v.name] for rates in each) for v in peaks}
    return {"peak_flop_per_s": statistics.median(best), "products_flop_per_s": products, "variants": rows}


def table(title: str, found: dict[str, Any], anchors: dict[str, str]) -> Table:
    peak = found["peak_flop_per_s"] / 1e9
    caption = f"peak of large products in the same run: {peak:,.0f} GFLOP/s\nmeasured: {MEASURED}\nGFLOP/s: {COUNTED}"
    out = Table(title=title, caption=caption, caption_justify="left")
    out.add_column("", no_wrap=True)
    for name in ["s", "images/s", "GFLOP/s\nnecessary", "of the\npeak", *(f"over\n{name}" for name in anchors.values())]:
        out.add_column(name, justify="right", no_wrap=True)
    for row in found["variants"]:
        cells = [f"{statistics.median(row['seconds']):.3f}", f"{row['images_per_s']:,.1f}", f"{row['flop_per_s'] / 1e9:,.1f}"]
        cells += [f"{100 * row['utilisation']:.1f}%", *(f"{row[f'speedup_over_{what}']:.2f}" for what in anchors)]
        out.add_row(row["name"], *cells)
    return out


def widths_of(text: str) -> list[int]:
    """A list such as 1,4,10 -> the widths, 1 always among them, ascending."""
    try:
        widths = sorted({1, *map(int, text.split(","))})
    except ValueError:
        raise UserError(f"--clients: '{text}' is no list of numbers such as 1,4,10") from None
    if widths[0] < 1:
        raise UserError(f"--clients: {widths[0]} clients cannot share a pass; 1 or more can")
    return widths


def device_of(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: 'cuda' is asked for, but torch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help="tiny, or an open_clip ViT; its weights are random")
    parser.add_argument("--precision", default="fp32", choices=tuple(TOLERANCE))
    parser.add_argument("--clients", default="1,4,10", help="clients in one pass, one measurement each; 1 is always measured")
    parser.add_argument("--batch", type=int, default=32, help="images a client and step")
    parser.add_argument("--classes", type=int, default=51, help="base classes; there is one novel class less")
    parser.add_argument("--repeats", type=int, default=0, help="turns; 0: 3 on the CPU, 10 on a GPU")
    parser.add_argument("--steps", type=int, default=0, help="steps in a row under one clock; 0: 1 on the CPU, 5 on a GPU")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--evaluation", action="store_true", help="measure evaluation in place of training")
    parser.add_argument("--images", type=int, default=0, help="images of each test set; 0: 64 on the CPU, 512 on a GPU")
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    args = parser.parse_args()
    for name, least in {"batch": 1, "classes": 2, "repeats": 0, "steps": 0, "images": 0}.items():
        if getattr(args, name) < least:
            raise UserError(f"--{name}: {getattr(args, name)} is too small; {least} is the least")
    device, widths = device_of(args.device), widths_of(args.clients)
    gpu = device.type == "cuda"
    if not gpu:
        keep_freed_memory()  # as the main job does; the plain path has the same
    repeats, images = args.repeats or (10 if gpu else 3), args.images or (512 if gpu else 64)
    bench = Bench(Setting(args.model, args.precision, widths[-1], args.batch, args.classes, images, device))
    variants = evaluation_variants(bench) if args.evaluation else training_variants(bench, widths)
    tokens = len(bench.backbone.visual.positions)
    peaks = peak_variants(bench, rows=(args.batch if args.evaluation or not gpu else widths[-1] * args.batch) * tokens)
    # On a CPU the comparison of the first results was the warm-up.
    times = in_turn(peaks + variants, device, repeats, 1 if args.evaluation else args.steps or (5 if gpu else 1), warmup=2 * gpu)
    anchors = {"plain": PLAIN} | ({} if args.evaluation else {"one_at_a_time": stack_name(1)})
    found = summary(variants, peaks, times, anchors)
    what = f"evaluation of {widths[-1]} clients, {images} + {images} images" if args.evaluation else f"a local step, batch {args.batch}"
    title = f"{what}, {args.classes} classes\n{args.model}, {args.precision}, {device.type}, {torch.get_num_threads()} threads"
    show(table(title, found, anchors))
    setting = {"model": args.model, "precision": args.precision, "clients": widths, "batch": args.batch, "classes": args.classes}
    setting |= {"text_tokens": bench.shapes(bench.base)[1].tokens, "repeats": repeats}
    setting |= {"images_a_test_set": images, "plain_path_timed_for_clients_a_repeat": 1} if args.evaluation else {}
    report = {
        "benchmark": "evaluation" if args.evaluation else "local_training",
        "date": datetime.date.today().isoformat(),
        **machine(device, "open_clip"),
        **setting,
        "measured": MEASURED,
        "counted": COUNTED,
        **found,
    }
    publish(report, args.json)


if __name__ == "__main__":
    run_main(main)
