"""What a run moves between its ranks, counted at network interfaces, beside what its ledger says.

    python benchmarks/wire.py [--ranks 3] [--rounds 3] [--backbone ViT-B-16] [--methods pfedmma,fedavg_mma] [--out FILE]

Needs Linux, root and ``ip`` (iproute2). Every rank runs ``pfedmma.train`` in a network namespace of its own; the namespaces are joined by a
bridge, so that all which ranks tell each other passes their interfaces, and nothing else does. They are made anew for every run: counters
begin at zero. Each method runs twice on a few drawn images, with an evaluation and a checkpoint after every round:

- metered: each rank reads its interface after every collective, with a pause on both sides in which nobody sends. What came since the
  reading before belongs to that collective, so the parts add up to the interface's counter whatever it was that travelled.
- as it is: ``python -m pfedmma.train`` with the same settings; its counters are read at the end alone and must come to the same total.

Counters hold whole frames. Besides payload these are Ethernet, IP and TCP headers, acknowledgements, and what gloo says: it cuts an
all-reduce into 4 (n-1) pieces a rank or more, and both sides announce each. The kernel hands up to 64 kB at once to these interfaces, and
a header counts once in it; with ``--frames`` once a frame, as on a wire. A rank that waits for others for a second says so in the store
where ranks meet; that counts, too. A table for each method, JSON on the last line.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import signal
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from drawn_files import write_files
from machine import machine, publish
from meter import PHASES, Reading
from namespaces import COUNTERS, network, require_namespaces, run_ranks
from programs import ROOT, require_at_least
from rich.table import Table

from pfedmma.comm.ledger import EXCHANGE, ring_bytes
from pfedmma.records.checkpoint import manifest as checkpoints
from pfedmma.records.folder import RunFolder
from pfedmma.system.console import show
from pfedmma.system.errors import ArgumentParser, UserError, run_main

SETTLE = 0.25  # seconds; a delayed acknowledgement comes within 0.2
BOUNDS = {"pfedmma": 0.10, "fedavg_mma": 0.01}  # how far from the ring model an exchange may be, at the sizes of ViT-B/16
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MEASURED = "bytes that arrived at a rank's interface, whole frames; of a round: with its exchange, and the losses before it apart"
MODEL = "ring_bytes_per_rank = 2(n-1)/n x payload of a round's exchange, as the run's ledger gives it"


def settings(args: argparse.Namespace, method: str, root: Path, run_dir: Path) -> list[str]:
    """One client a rank, one image a client: what travels depends on neither."""
    return [
        f"method.name={method}",
        f"backbone.name={args.backbone}",
        "backbone.pretrained=none",
        "data.name=caltech101",
        f"data.root={root}",
        f"data.clients={args.ranks}",
        "data.shots=1",
        f"federation.rounds={args.rounds}",
        "federation.local_epochs=1",
        "evaluation.every=1",
        "checkpoint.every=1",
        "distributed.backend=gloo",
        "distributed.device=cpu",
        f"run_dir={run_dir}",
    ]


def measure(args: argparse.Namespace, method: str, root: Path, work: Path) -> dict[str, Any]:
    """Both runs of ``method``, and what their counters and ledgers come to."""
    metered, plain = (work / f"{method}-{kind}" for kind in ("metered", "plain"))
    readings, ends, sizes = run_metered(args, settings(args, method, root, metered / "run"), metered)
    unmetered = run_as_it_is(args, settings(args, method, root, plain / "run"), plain)
    comm = asdict(RunFolder(metered / "run").read_metrics()[-1].comm)
    if comm["payload_bytes"] == 0:
        raise UserError(f"--methods: {method} exchanges nothing; name methods that do, such as pfedmma")
    for folder in (metered, plain):
        check_ledger(readings, asdict(RunFolder(folder / "run").read_summary().comm))
    found = account(readings, ends, comm, args.rounds)
    bound = BOUNDS.get(method) if args.backbone == "ViT-B-16" else None
    return {
        "name": method,
        "world_size": args.ranks,
        "rounds": args.rounds,
        **found,
        "bound": bound,
        "within_bound": None if bound is None else abs(found["ratio"] - 1.0) <= bound,
        "unmetered_total_rx_bytes": unmetered,
        "unmetered_ratio": farthest(a / b for a, b in zip(unmetered, found["total_rx_bytes"], strict=True)),
        "private_bytes_of_a_client": private_bytes(metered / "run"),
        "ledger": {name: comm[name] for name in ("payload_bytes", "ring_bytes_per_rank", "collectives", "bookkeeping")},
        **sizes,
    }


def run_metered(
    args: argparse.Namespace, settings: Sequence[str], folder: Path
) -> tuple[list[list[Reading]], list[dict[str, int]], dict[str, int]]:
    """The run whose ranks read their interfaces.

    Returns:
        Of each rank its readings, and `COUNTERS` at its end; the sizes of packets.
    """
    folder.mkdir()
    notes = [folder / f"readings-{rank}.json" for rank in range(args.ranks)]
    program = str(ROOT / "benchmarks" / "meter.py")

    def command(rank: int) -> list[str]:
        return [program, json.dumps({"settings": settings, "settle": args.settle, "readings": str(notes[rank])})]

    with network(args.ranks, args.frames) as net:
        sizes = net.sizes()
        run_ranks(net, folder, command, args.threads, args.limit)
        ends = net.counters()
    return [[Reading(**row) for row in json.loads(note.read_text(encoding="utf-8"))] for note in notes], ends, sizes


def run_as_it_is(args: argparse.Namespace, settings: Sequence[str], folder: Path) -> list[int]:
    """The same run without a meter; bytes that each rank has received at its end."""
    folder.mkdir()
    with network(args.ranks, args.frames) as net:
        run_ranks(net, folder, lambda _: ["-m", "pfedmma.train", *settings], args.threads, args.limit)
        return [end["rx_bytes"] for end in net.counters()]


def check_ledger(readings: Sequence[Sequence[Reading]], comm: dict[str, Any]) -> None:
    """Raise a `UserError` unless all ranks, and the ledger's totals ``comm``, agree on every collective."""
    for rank, own in enumerate(readings):
        if [(r.phase, r.purpose, r.payload) for r in own] != [(r.phase, r.purpose, r.payload) for r in readings[0]]:
            raise UserError(f"ranks 0 and {rank} entered different collectives; their counters cannot be compared")
    counted = {purpose: summed(r for r in readings[0] if r.purpose == purpose) for purpose in {r.purpose for r in readings[0]}}
    booked = {EXCHANGE: {name: comm[name] for name in ("collectives", "payload_bytes")}} if comm["collectives"] else {}
    if booked | comm["bookkeeping"] != counted:
        raise UserError(f"the ledger says {booked | comm['bookkeeping']}, and the ranks entered {counted}; one of the two is wrong")


def private_bytes(run_dir: Path) -> int:
    """Bytes (fp32) of the tensors that a client keeps to itself, by the run's newest checkpoint."""
    root = run_dir / "checkpoints"
    manifest = checkpoints.read_manifest(checkpoints.folder_of(root, checkpoints.rounds(root)[0]))
    return 4 * (manifest.layout.private.stop - manifest.layout.private.start)


def account(readings: Sequence[Sequence[Reading]], ends: Sequence[dict[str, int]], comm: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The counters by part of the run, and a round beside the ring model; lists are by rank.

    Args:
        readings: of each rank, one a collective.
        ends: `COUNTERS` of each rank when its process had ended; what came after the last collective is the shutdown's.
        comm: the ledger's object of one round.
    """

    def received(phase: str, *purposes: str) -> list[int]:
        return [sum(r.rx_bytes for r in own if r.phase == phase and r.purpose in (purposes or (r.purpose,))) for own in readings]

    phases = {phase: received(phase) for phase in PHASES}
    phases["shutdown"] = [end["rx_bytes"] - sum(r.rx_bytes for r in own) for end, own in zip(ends, readings, strict=True)]
    exchange = [count / rounds for count in received("rounds", EXCHANGE)]
    losses = [count / rounds - own for count, own in zip(phases["rounds"], exchange, strict=True)]
    ring = comm["ring_bytes_per_rank"]
    return {
        "payload_bytes_per_round": comm["payload_bytes"],
        "ring_bytes_per_rank": ring,
        "measured_received_per_rank_per_round": exchange,
        "ratio": farthest(count / ring for count in exchange),
        "losses_received_per_rank_per_round": losses,
        "ratio_with_losses": farthest(count / rounds / ring for count in phases["rounds"]),
        "phases": phases,
        "collectives": {phase: summed(r for r in readings[0] if r.phase == phase) for phase in PHASES},
        **{f"total_{name}": [end[name] for end in ends] for name in COUNTERS},
    }


def summed(readings: Iterable[Reading]) -> dict[str, int]:
    """How many collectives, and the bytes handed to them."""
    payloads = [reading.payload for reading in readings]
    return {"collectives": len(payloads), "payload_bytes": sum(payloads)}


def farthest(ratios: Iterable[float]) -> float:
    """The one that is farthest from 1."""
    return max(ratios, key=lambda ratio: abs(ratio - 1.0))


def table(run: dict[str, Any], title: str) -> Table:
    """The account of one run: of all ranks the one that received least and the one that received most."""
    out = Table(title=title, caption="\n".join(remarks(run)), caption_justify="left")
    out.add_column("part of the run", no_wrap=True)
    for name in ("collectives", "payload\nbytes", "ring bytes\nmodel", "received\nleast", "received\nmost"):
        out.add_column(name, justify="right", no_wrap=True)

    def add(name: str, received: Sequence[float], collectives: float = 0, payload_bytes: float = 0) -> None:
        numbers = (collectives, payload_bytes, ring_bytes(payload_bytes, run["world_size"]), min(received), max(received))
        out.add_row(name, *(f"{number:,.0f}" if number else "-" for number in numbers))

    rounds, ledger, within = run["rounds"], run["ledger"], run["collectives"]["rounds"]
    calls, payload = ledger["collectives"], ledger["payload_bytes"]
    add("a round: exchange", run["measured_received_per_rank_per_round"], calls, payload)
    losses = run["losses_received_per_rank_per_round"]
    add("a round: losses", losses, within["collectives"] / rounds - calls, within["payload_bytes"] / rounds - payload)
    out.add_section()
    for phase in PHASES:
        add(f"all {rounds} rounds" if phase == "rounds" else phase, run["phases"][phase], **run["collectives"][phase])
    out.add_section()
    add("the whole run", run["total_rx_bytes"])
    add("the same run as it is", run["unmetered_total_rx_bytes"])
    return out


def remarks(run: dict[str, Any]) -> list[str]:
    """What the table comes to, in words."""
    verdict = "" if run["bound"] is None else f"; {'within' if run['within_bound'] else 'MISSES'} the bound of {100 * run['bound']:g} %"
    lines = [
        f"exchange: {100 * (run['ratio'] - 1):+.2f} % of the ring model on the rank that is farthest from it{verdict}; "
        f"with the losses {100 * (run['ratio_with_losses'] - 1):+.2f} %",
        f"the run as it is, not metered: {100 * (run['unmetered_ratio'] - 1):+.2f} % of the metered one's total",
    ]
    if private := run["private_bytes_of_a_client"]:
        most = max(run["total_rx_bytes"] + run["unmetered_total_rx_bytes"])
        lines.append(f"a client keeps {private:,} bytes to itself; no rank received more than {most:,} in a whole run")
    once = run["mtu"] if run["gso_max_segs"] == 1 else run["gso_max_size"]
    return [
        *lines,
        f"packets of {run['mtu']} bytes; a header counts once in at most {once:,} bytes",
        f"measured: {MEASURED}",
        f"model: {MODEL}",
    ]


def arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="ViT-B-16", help="tiny, or an open_clip ViT; its weights are random")
    parser.add_argument("--methods", default="pfedmma,fedavg_mma", help="those that exchange something")
    parser.add_argument("--frames", action="store_true", help="hand nothing larger than a frame to the interfaces (gso_max_segs 1)")
    parser.add_argument("--settle", type=float, default=SETTLE, help="seconds of the pauses around a reading")
    parser.add_argument("--threads", type=int, default=1, help="of every rank")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a run may take")
    parser.add_argument("--out", "--json", type=Path, help="write the report to this file, too")
    args = parser.parse_args()
    args.methods = args.methods.split(",")
    require_at_least(args, ranks=2, rounds=1, threads=1, settle=0.05, limit=1)
    return args


def stop(*_: object) -> NoReturn:
    """End as Ctrl-C does; whoever presses it twice does not disturb the cleaning up."""
    for number in STOPS:
        signal.signal(number, lambda *_: None)  # Python complains of one that has come already if they are ignored outright
    raise KeyboardInterrupt


def main() -> None:
    args = arguments()
    require_namespaces()
    for number in STOPS:
        signal.signal(number, stop)
    torch.set_num_threads(args.threads)
    runs = []
    with tempfile.TemporaryDirectory(prefix="pfedmma-wire-") as folder:
        root = Path(folder) / "images"
        write_files(root, classes=2 * args.ranks, shots=1, tests=1)
        for method in args.methods:
            runs.append(measure(args, method, root, Path(folder)))
            show(table(runs[-1], f"{method} on {args.backbone}: {args.ranks} ranks, gloo"))
    report = {
        "benchmark": "wire",
        "date": datetime.date.today().isoformat(),
        **machine(torch.device("cpu"), "open_clip", "accelerate"),
        "kernel": platform.release(),
        "backend": "gloo",
        "backbone": args.backbone,
        "measured": MEASURED,
        "model": MODEL,
        "runs": runs,
    }
    publish(report, args.out)


if __name__ == "__main__":
    run_main(main)
