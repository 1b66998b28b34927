"""What a local step, an evaluation and a round would take on a device that is not at hand: a model, checked on the CPU that is.

    python benchmarks/roofline.py --device h100 [--model ViT-B-16-quickgelu] [--method pfedmma] [--precision bf16] [--ranks 1,2,8,64]
    python benchmarks/roofline.py --device cpu [--model ViT-B-32] [--clients 2]

Counted: the operators of the real `LocalTraining.step` and `Evaluator.table` (operators.py), on the meta device with what torch would call
on a GPU (pfedmma/cost/as_on_gpu.py). Modelled: the time of each from its operations, bytes and launch (devices.py); steps of few
clients are CUDA graphs, whose launches cost the host nothing. Not in it: input, which is taken to lie on the device, checkpoints, the
start, and waits of ranks for each other. Ranks host clients as evenly as can be, and all batches are full.

``--device cpu`` measures this machine's products, memory and smallest operator first, models the step and the evaluation with them, and
then times both: the ratio says how far such a model can be believed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import arithmetic
import torch
from devices import GPUS, Device, measured_cpu, now, timed
from machine import machine, publish
from one_rank import OneRank, Setting
from operators import GROUPS, Operator, record
from programs import require_at_least
from rich.table import Table

from pfedmma.clip.stems import StemCache
from pfedmma.cost.as_on_gpu import as_on_gpu
from pfedmma.engine.graphs import WIDEST
from pfedmma.methods.pfedmma import MultiModalAdapters
from pfedmma.methods.registry import NAMES
from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main
from pfedmma.system.memory import keep_freed_memory

COUNTED = "operators of the real step and evaluation: launches, operations and bytes (benchmarks/operators.py)"
MODELLED = "times: the slower of operations, bytes and smallest kernel for each operator, launches ahead of them but in graphs (devices.py)"
# What the numbers are where none are given: the setting of the paper on a GPU, and one that takes a minute on a CPU.
ON_GPU = {"model": "ViT-B-16-quickgelu", "precision": "bf16", "clients": 10, "images": 1232, "ranks": "1,2,8,64"}
ON_CPU = {"model": "ViT-B-32", "precision": "fp32", "clients": 2, "images": 64, "ranks": "1"}
FP32_WIRE = 4  # bytes of an exchanged number


class Model:
    """The work of ``rank`` on ``device``, by how many clients there are and share a pass."""

    def __init__(self, rank: OneRank, device: Device) -> None:
        self.rank, self.device = rank, device
        self.step, self.evaluations = cache(self._step), cache(self._evaluations)

    def seconds(self, clients: int) -> float:
        """Of a step: as a CUDA graph, which needs no host, where a run on a GPU takes one."""
        step = self.step(clients)
        graph = clients <= WIDEST and not self.device.own_host
        return sum(map(self.device.busy, step)) if graph else self.device.seconds(step)

    def _step(self, clients: int) -> list[Operator]:
        return record(self.rank.step(clients))

    def _evaluations(self, clients: int, together: int) -> tuple[list[Operator], list[Operator]]:
        """Of the first evaluation, and of a later one, with the frozen blocks' outputs kept."""
        work = self.rank.evaluation(clients, together, StemCache(float("inf")))
        return record(work), record(work)

    def training(self, hosted: int, together: int, steps: int) -> float:
        """Seconds that a rank trains the clients that it hosts."""
        widths = [min(together, hosted - first) for first in range(0, hosted, together)]
        return steps * sum(self.seconds(width) for width in widths)

    def round(self, ranks: int, args: argparse.Namespace) -> dict[str, Any]:
        """A round on so many ranks, as the fullest of them has it."""
        hosted, tested = -(-args.participants // ranks), -(-args.clients // ranks)
        width = min(args.together, hosted)
        first, later = self.evaluations(tested, min(args.together, tested))
        step, training = self.step(width), self.training(hosted, args.together, args.steps)
        payload = FP32_WIRE * self.rank.layout.exchanged_size
        exchange = self.device.exchange(payload, ranks) + self.device.exchange(8 * args.participants, ranks)  # and the losses
        return {
            "ranks": ranks,
            "clients_of_fullest_rank": hosted,
            "clients_a_pass": width,
            "step_s": self.seconds(width),
            "host_s": sum(map(self.device.issuing, step)),
            "training_s": training,
            "exchange_s": exchange,
            "round_s": training + exchange,
            "first_evaluation_s": self.device.seconds(first),
            "later_evaluation_s": self.device.seconds(later),
        }


def totals(operators: Sequence[Operator], device: Device) -> dict[str, Any]:
    """Sums over operators, and how long they keep the device busy [s]."""
    return {
        "operators": len(operators),
        "launches": sum(each.launches for each in operators),
        "flop": sum(each.flops for each in operators),
        "bytes": sum(each.bytes for each in operators),
        "busy_s": sum(map(device.busy, operators)),
    }


def by_group(operators: Sequence[Operator], device: Device) -> dict[str, dict[str, Any]]:
    """`totals` of each group."""
    return {name: totals([each for each in operators if each.group == name], device) for name in GROUPS}


def necessary(rank: OneRank, clients: int) -> int | None:
    """Operations that the step cannot do without (arithmetic.py); None where nobody has counted them for the method."""
    if not isinstance(rank.method, MultiModalAdapters):
        return None
    shapes = arithmetic.towers(rank.backbone, rank.method.spec, rank.backbone.prompts(rank.template, rank.base))
    return sum(arithmetic.training_step(*shapes, clients, rank.setting.batch, rank.setting.classes).values())


def described(model: Model, clients: int) -> dict[str, Any]:
    """A local step of so many clients in one pass."""
    operators, device = model.step(clients), model.device
    found = totals(operators, device) | {"seconds": model.seconds(clients), "host_s": sum(map(device.issuing, operators))}
    wanted = necessary(model.rank, clients)
    rate = {} if wanted is None else {"necessary_flop": wanted, "necessary_flop_per_s": wanted / found["seconds"]}
    return found | rate | {"groups": by_group(operators, device)}


def check(name: str, work: Callable[[], object], device: Device, repeats: int) -> dict[str, Any]:
    """What the model says of ``work`` beside a clock: as a whole, and group by group in one more run with a clock around each operator."""
    seconds = timed(work, repeats)
    operators = record(work, clock=now)
    modelled = device.seconds(operators)
    groups = {
        group: {"modelled_s": device.seconds(own), "measured_s": sum(each.seconds for each in own)}
        for group in GROUPS
        if (own := [each for each in operators if each.group == group])
    }
    middle = statistics.median(seconds)
    whole = {"modelled_s": modelled, "measured_s": seconds, "measured_over_modelled": middle / modelled}
    spread = (max(seconds) - min(seconds)) / middle  # what of the ratio is noise
    return {"name": name, "flop": sum(each.flops for each in operators), **whole, "spread": spread, "groups": groups}


def checks(rank: OneRank, device: Device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The step and the evaluation on this CPU."""
    step, tests = rank.step(args.clients), rank.evaluation(args.clients, args.together, StemCache(0.0))
    found = [check("local step", step, device, args.repeats), check("evaluation", tests, device, args.repeats)]
    with as_on_gpu():
        found[0]["meta_flop"] = sum(each.flops for each in record(OneRank(rank.setting, torch.device("meta")).step(args.clients)))
    return found


def in_words(step: dict[str, Any]) -> str:
    """What a step comes to, in words."""
    whole = f"a step: {1e3 * step['seconds']:,.1f} ms; device busy {1e3 * step['busy_s']:,.1f}, host {1e3 * step['host_s']:,.1f}"
    return whole + (f"; {step['necessary_flop_per_s'] / 1e12:,.2f} TFLOP/s of necessary products" if "necessary_flop" in step else "")


def table_of_step(step: dict[str, Any], title: str) -> Table:
    caption = f"counted: {COUNTED}\nmodelled: {MODELLED}\n{in_words(step)}"
    out = Table(title=title, caption=caption, caption_justify="left")
    out.add_column("", no_wrap=True)
    for name in ("launches", "GFLOP", "GB", "busy ms", "of all"):
        out.add_column(name, justify="right", no_wrap=True)
    for name, row in [*step["groups"].items(), ("all", step)]:
        share = row["busy_s"] / step["busy_s"]
        cells = (
            f"{row['launches']:,}",
            f"{row['flop'] / 1e9:,.1f}",
            f"{row['bytes'] / 1e9:,.2f}",
            f"{1e3 * row['busy_s']:,.2f}",
            f"{share:.1%}",
        )
        out.add_row(name, *cells)
    return out


def titled(args: argparse.Namespace) -> str:
    """The title of a step."""
    clients, what = min(args.together, args.participants), f"{args.model}, {args.method}, {args.precision}, {args.device}"
    return f"a local step of {clients} clients, {args.batch} images each, {args.classes} classes\n{what}"


def table_of_rounds(rounds: Sequence[dict[str, Any]], args: argparse.Namespace) -> Table:
    title = f"a round: {args.participants} participants, {args.steps} local steps each"
    title += f"\ntests of {args.clients} clients on 2 x {args.images} images"
    out = Table(title=title, caption="modelled; training, exchange and evaluations one after another", caption_justify="left")
    names = ["ranks", "clients\na rank", "step\nms", "host\nms", "train\nms", "exchange\nms", "round\nms", "times\nas fast"]
    for name in [*names, "first\ntest s", "later\ns"]:
        out.add_column(name, justify="right", no_wrap=True)
    for row in rounds:
        times = [f"{1e3 * row[name]:,.2f}" for name in ("step_s", "host_s", "training_s", "exchange_s", "round_s")]
        tests = [f"{row[name]:,.2f}" for name in ("first_evaluation_s", "later_evaluation_s")]
        speed = f"{rounds[0]['round_s'] / row['round_s']:.2f}"
        out.add_row(str(row["ranks"]), str(row["clients_of_fullest_rank"]), *times, speed, *tests)
    return out


def table_of_check(found: dict[str, Any]) -> Table:
    clock = "CPU time of one thread" if torch.get_num_threads() == 1 else "time by the wall's clock"
    caption = f"measured: {clock}; of {len(found['measured_s'])} runs, which spread over {found['spread']:.0%}\n"
    caption += "groups: in a further run, with a clock around each operator"
    out = Table(title=f"{found['name']} on this CPU", caption=caption, caption_justify="left")
    out.add_column("", no_wrap=True)
    for name in ("modelled ms", "measured ms", "measured /\nmodelled"):
        out.add_column(name, justify="right", no_wrap=True)
    whole = {"modelled_s": found["modelled_s"], "measured_s": statistics.median(found["measured_s"])}
    for name, row in [*found["groups"].items(), ("all", whole)]:
        ratio = row["measured_s"] / row["modelled_s"]
        out.add_row(name, f"{1e3 * row['modelled_s']:,.2f}", f"{1e3 * row['measured_s']:,.2f}", f"{ratio:.2f}")
    return out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="h100", choices=(*GPUS, "cpu"), help="what is modelled; cpu: this machine's, measured first")
    parser.add_argument("--model", help=f"tiny, or an open_clip ViT; {ON_GPU['model']}, on the cpu {ON_CPU['model']}")
    parser.add_argument("--method", default="pfedmma", choices=NAMES)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16", "fp16"), help="bf16, on the cpu fp32")
    parser.add_argument("--clients", type=int, help="clients in all; 10, on the cpu 2")
    parser.add_argument("--participants", type=int, help="clients that train in a round; all")
    parser.add_argument("--together", type=int, default=10, help="clients that share a pass at most")
    parser.add_argument("--batch", type=int, default=32, help="images a client and step")
    parser.add_argument("--classes", type=int, default=51, help="base classes, and as many novel ones")
    parser.add_argument("--steps", type=int, default=6, help="local steps a client and round; 6: 5 classes x 16 shots, 2 epochs")
    parser.add_argument("--images", type=int, help="images of each test set; 1232: half of Caltech101's, on the cpu 64")
    parser.add_argument("--unfused", action="store_true", help="torch's operators one by one, without the kernels of this project")
    parser.add_argument("--ranks", help="a list such as 1,2,8,64")
    parser.add_argument("--threads", type=int, default=0, help="of the cpu; with 1 the clock is the process's CPU time; 0: as torch has it")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs on the cpu")
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    return parser.parse_args()


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """The options checked, those that are not given as the device wants them, and ``ranks`` read."""
    for name, value in (ON_CPU if args.device == "cpu" else ON_GPU).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.participants = args.clients if args.participants is None else args.participants
    require_at_least(args, clients=1, participants=1, together=1, batch=1, classes=2, steps=1, images=2, repeats=1, threads=0)
    if args.participants > args.clients:
        raise UserError(f"--participants: {args.participants} of {args.clients} clients cannot take part; {args.clients} at most")
    if args.device == "cpu" and args.precision == "tf32":
        raise UserError("--precision: tf32 is a format of GPUs; a cpu has fp32, bf16 and fp16")
    try:
        args.ranks = sorted({int(word) for word in args.ranks.split(",")})
    except ValueError:
        raise UserError(f"--ranks: '{args.ranks}' is no list of numbers such as 1,2,8,64") from None
    if args.ranks[0] < 1:
        raise UserError(f"--ranks: {args.ranks[0]} ranks cannot train; 1 or more can")
    return args


def device_of(args: argparse.Namespace, rank: OneRank) -> Device:
    """The device with its numbers, in the precision that is asked for."""
    if args.device != "cpu":
        device = GPUS[args.device]
        return dataclasses.replace(device, peak=device.peak | {"fp32": device.peak["tf32"]}) if args.precision == "tf32" else device
    plain, wanted = (measured_cpu(name, args.clients * args.batch, rank.backbone.visual) for name in ("fp32", args.precision))
    return dataclasses.replace(wanted, peak=plain.peak | wanted.peak)


def modelled(args: argparse.Namespace) -> tuple[Model, dict[str, Any]]:
    """The model, and what it says: the step, and rounds by ranks; shown as well."""
    cpu = args.device == "cpu"
    setting = Setting(args.model, args.method, args.precision.replace("tf32", "fp32"), args.batch, args.classes, args.images)
    with contextlib.nullcontext() if cpu else as_on_gpu(not args.unfused):
        rank = OneRank(setting, torch.device("cpu" if cpu else "meta"))
        model = Model(rank, device_of(args, rank))
        step = described(model, min(args.together, args.participants))
        rounds = [model.round(ranks, args) for ranks in args.ranks]
    show(table_of_step(step, titled(args)))
    show(table_of_rounds(rounds, args))
    return model, {"modelled_device": dataclasses.asdict(model.device), "step": step, "rounds": rounds}


def main() -> None:
    args = with_defaults(arguments())
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if args.device == "cpu":
        keep_freed_memory()  # as the main job does
    model, said = modelled(args)
    found = checks(model.rank, model.device, args) if args.device == "cpu" else []
    for each in found:
        show(table_of_check(each))
    report = {
        "benchmark": "roofline",
        "date": datetime.date.today().isoformat(),
        **machine(torch.device("cpu"), "open_clip"),
        **{name: value for name, value in vars(args).items() if name not in ("json", "device", "threads")},
        "counted": COUNTED,
        "modelled": MODELLED,
        **said,
        "checks": found,
    }
    publish(report, args.json)


if __name__ == "__main__":
    run_main(main)
