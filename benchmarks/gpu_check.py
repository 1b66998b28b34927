"""Everything that needs a GPU, in one command and within nine minutes: the tests marked ``gpu``, starts, and the benchmarks.

    python benchmarks/gpu_check.py [--out benchmarks/results/gpu-<name>] [--parts tests,local_training-bf16,...] [--budget 540]

Needs no installation beyond what the interpreter can import. Every part (`CHECKS`, then `PARTS`) is a process with a time limit of its own;
one that fails or runs past its limit does not stop the others, and all end within the budget. Checks, whose times mean nothing, run side
by side; what is timed runs alone. Each benchmark's report is written to
``<part>.json`` with hardware, versions and date, what all of them printed to ``output.txt``, and how they ended to ``summary.json``. The
exit status is 1 if a part failed, and 2 without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine import machine
from programs import ROOT, child_environment
from rich.markup import escape
from rich.table import Table

from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main

BUDGET = 540.0  # seconds for all parts
MARK = re.compile(r"^@pytest\.mark\.gpu\b|^pytestmark = .*\bgpu\b", re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """A command, the seconds that it may take, whether its last line is a report, and whether it must run alone."""

    name: str
    command: tuple[str, ...]
    limit: float
    reports: bool = True
    alone: bool = True


@dataclass(frozen=True)
class Ended:
    """How a part ended. ``problem`` is empty if all is well."""

    name: str
    seconds: float
    limit: float
    problem: str
    said: str  # its last line, if that is no report


MODEL = "ViT-B-16-quickgelu"  # the shapes and the activation of OpenAI's weights
STEP = f"benchmarks/local_training.py --device cuda --model {MODEL}"
EVALUATION = f"benchmarks/local_training.py --device cuda --model {MODEL} --precision bf16 --evaluation"
ROUND = f"benchmarks/round_time.py --device cuda --model {MODEL} --precision bf16"
RANKS = "-m torch.distributed.run --standalone --nproc_per_node={gpus}"
# Name, seconds at most, and what Python is started with; in the order of their weight, since the last ones may find no time left. A
# variant of the local step is one more line: its settings, as KEY=VALUE, stand at the end.
CHECKS = (
    ("tests", 170, "-m pytest -m gpu -p no:cacheprovider"),
    ("train", 100, "-m pfedmma.train distributed.device=cuda federation.rounds=2 run_dir={scratch}/alone"),
    (
        "train-torchrun",
        60,
        f"{RANKS} -m pfedmma.train distributed.device=cuda backbone.compile=off federation.rounds=2 run_dir={{scratch}}/ranks",
    ),
    ("lost_rank", 120, "benchmarks/lost_rank.py --device cuda --backend {backend} --ranks {ranks}"),
)
PARTS = (
    ("local_training-bf16", 75, f"{STEP} --precision bf16 --clients 1,2,4,6,8,10 --graphs"),
    ("gpu_profile", 60, f"benchmarks/gpu_profile.py --model {MODEL}"),
    ("round_time", 100, ROUND),
    ("local_training-cudnn", 60, f"{STEP} --precision bf16 --clients 2,10 backbone.attention=cudnn"),
    ("evaluation-10", 45, f"{EVALUATION} --clients 10"),
    ("local_training-compiled", 150, f"{STEP} --precision bf16 --clients 2,10 --compile --graphs"),
    ("local_training-deterministic", 45, f"{STEP} --precision bf16 --clients 2,10 backbone.deterministic=true"),
    ("local_training-fp32", 60, f"{STEP} --precision fp32 --clients 2,10 --repeats 3 --steps 2"),
    ("local_training-tf32", 45, f"{STEP} --precision fp32 --clients 2,10 --repeats 3 --steps 2 backbone.tf32=true"),
    ("input", 75, "benchmarks/input.py --most 320 --epochs 2 --workers 8 --drawn caltech101,food101,sun397,imagenet"),
    ("evaluation-2", 45, f"{EVALUATION} --clients 2"),
    ("scaling", 45, "benchmarks/scaling.py overhead --device cuda"),
    ("balance", 60, f"{RANKS} benchmarks/balance.py --device cuda"),
    ("communication", 45, f"{RANKS} benchmarks/communication.py --device cuda"),
    ("round_time-one_at_a_time", 75, f"{ROUND} --clients-per-pass 1"),
)
NO_REPORT = "tests", "train"  # how the names of parts begin whose last line is none


def all_parts(gpus: int, scratch: Path) -> list[Part]:
    """`CHECKS` and `PARTS` on a machine with so many GPUs. Ranks that outnumber them meet by gloo. ``scratch``: a folder for runs."""
    here = {"gpus": gpus, "ranks": max(2, gpus), "backend": "nccl" if gpus > 1 else "gloo", "scratch": scratch}
    parts = []
    for name, limit, line in CHECKS + PARTS:
        words = [word.format(**here) for word in line.split()] + (marked_tests() if name == "tests" else [])
        alone = (name, limit, line) in PARTS
        parts.append(Part(name, (sys.executable, *words), float(limit), not name.startswith(NO_REPORT), alone))
    return parts


def marked_tests() -> list[str]:
    """The test files that hold tests marked ``gpu``: others may import what is not there."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if MARK.search(file.read_text(encoding="utf-8"))]


def run_part(part: Part, limit: float) -> tuple[Ended, str]:
    """How the part ended, within ``limit`` seconds, and all that it printed."""
    begin = time.perf_counter()
    # A session of its own, so that the ranks which it started end with it.
    process = subprocess.Popen(
        part.command,
        cwd=ROOT,
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    problem = ""
    try:
        out, _ = process.communicate(timeout=limit)
    except BaseException as error:  # an interruption, too: nothing may go on without this program
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        problem = f"not done within {limit:.0f} s"
    if not problem and process.returncode != 0:
        problem = f"exit status {process.returncode}"
    if not problem and part.reports and report_of(out) is None:
        problem = "no report on its last line"
    lines = [line for line in out.splitlines() if line.strip()]
    said = lines[-1] if lines and report_of(out) is None else ""
    return Ended(part.name, time.perf_counter() - begin, limit, problem, said[:300]), out


def report_of(out: str) -> dict[str, Any] | None:
    """The last JSON object that stands on a line by itself among the last lines; launchers may say something after it."""
    for line in reversed(out.splitlines()[-20:]):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                return json.loads(line)
    return None


def run_all(parts: Sequence[Part], out: Path, budget: float, here: dict[str, Any]) -> list[Ended]:
    """All parts, those that need not be alone first and side by side; ``here`` is added to reports that lack it."""
    until, ended = time.perf_counter() + budget, []

    def run(part: Part) -> tuple[Part, Ended, str]:
        left = until - time.perf_counter()
        if left < 1.0:
            return part, Ended(part.name, 0.0, 0.0, "no time was left", ""), ""
        print(f"{part.name} ...", flush=True)
        return part, *run_part(part, min(part.limit, left))

    together = [part for part in parts if not part.alone]
    with (out / "output.txt").open("w", encoding="utf-8") as log, ThreadPoolExecutor(len(together) or 1) as side_by_side:
        for part, end, said in itertools.chain(side_by_side.map(run, together), map(run, [part for part in parts if part.alone])):
            ended.append(end)
            log.write(f"=== {part.name}: {end.problem or 'done'}, {end.seconds:.1f} s\n{said}\n")
            log.flush()
            if end.problem:
                print(f"{part.name}: {end.problem}\n{said[-1500:]}", flush=True)
            elif part.reports:
                report = here | (report_of(said) or {})
                (out / f"{part.name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return ended


def table(ended: Sequence[Ended], device: str) -> Table:
    out = Table(title=f"GPU check on {device}")
    out.add_column("part", no_wrap=True)
    for name in ("s", "limit s"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("")
    for end in ended:
        out.add_row(end.name, f"{end.seconds:.1f}", f"{end.limit:.0f}", escape(end.problem or end.said or "done"))
    return out


def chosen(parts: Sequence[Part], names: str) -> list[Part]:
    wanted = names.split(",") if names else [part.name for part in parts]
    known = [part.name for part in parts]
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"--parts: there is no part '{unknown[0]}'; there are {', '.join(known)}")
    return [part for part in parts if part.name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the results; benchmarks/results/gpu-<name of the GPU> otherwise")
    parser.add_argument("--parts", default="", help="some of the parts, instead of all")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all parts together")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("gpu-check needs a machine with a CUDA GPU, and torch sees none here")
    gpus, device = torch.cuda.device_count(), torch.cuda.get_device_name()
    out = args.out or ROOT / "benchmarks" / "results" / f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}"
    here = {"date": datetime.date.today().isoformat(), **machine(torch.device("cuda"), "open_clip", "accelerate"), "gpus": gpus}
    with tempfile.TemporaryDirectory(prefix="pfedmma-gpu-") as scratch:
        parts = chosen(all_parts(gpus, Path(scratch)), args.parts)
        out.mkdir(parents=True, exist_ok=True)
        ended = run_all(parts, out, args.budget, here)
    failed = [end.name for end in ended if end.problem]
    summary = {"benchmark": "gpu_check", **here, "failed": failed, "parts": [asdict(end) for end in ended]}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    show(table(ended, device))
    print(json.dumps(summary), flush=True)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
