"""What a round of the server costs beside FedAvg: seconds of optimizers, robust sums, noise and masks on one rank, and bytes.

``python benchmarks/server_rules.py [--participants 10,100] [--json FILE]``: for S of ViT-B/16 and all its adapters, by the clock of one
process; the best of several rounds. Bytes for keys are a model of the published protocol, they are not sent.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path
from typing import NamedTuple

import torch
from machine import machine, publish
from rich.table import Table

from pfedmma.comm.ledger import Moved
from pfedmma.comm.world import World
from pfedmma.server.draws import Draws
from pfedmma.server.privacy import CLIENTS, Asked, Bounded
from pfedmma.server.robust import MOST_GATHERED
from pfedmma.server.rules import SHARED, ServerRules, Uploads
from pfedmma.server.secure_sum import key_bytes
from pfedmma.server.server import Server
from pfedmma.server.settings import ServerConfig, rules_from
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import MEAN
from pfedmma.system.console import show

CPU = torch.device("cpu")
SIZES = {"S": 8_448, "all adapters": 674_560}  # exchanged parameters at ViT-B/16
MOST_MASKED = 3e8  # mask words of a round that are still worth waiting for


class Way(NamedTuple):
    """A kind of server. ``z``: noise multiplier; None without clipping."""

    name: str
    config: ServerConfig = ServerConfig()
    z: float | None = None
    noise: str = "server"
    secure: bool = False


WAYS = (
    Way("average"),
    Way("adam", ServerConfig(rule="adam")),
    Way("norm_clip", ServerConfig(robust="norm_clip")),
    Way("trimmed_mean", ServerConfig(robust="trimmed_mean")),
    Way("clip", z=0.0),
    Way("noise of the server", z=1.0),
    Way("noise of clients", z=1.0, noise=CLIENTS),
    Way("secure sum", z=0.0, secure=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--participants", default="10,100", help="participants of a round, with commas between them")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the fastest counts")
    parser.add_argument("--json", type=Path, help="where to keep the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts = [int(each) for each in args.participants.split(",")]
    rows = [measured(way, name, count, args.rounds) for name in SIZES for count in counts for way in WAYS if sensible(way, name, count)]
    table = Table(title="A round of the server on one rank")
    for column in ("exchanged", "participants", "server", "ms", "payload, MB", "keys a client, kB (model)"):
        table.add_column(column, justify="left" if column in ("exchanged", "server") else "right")
    for row in rows:
        keys = f"{row['key_bytes_modelled'] / 1e3:.1f}" if row["key_bytes_modelled"] else ""
        shown = [
            row["exchanged"],
            row["participants"],
            row["server"],
            f"{1e3 * row['seconds']:.2f}",
            f"{row['payload_bytes'] / 1e6:.3f}",
            keys,
        ]
        table.add_row(*map(str, shown))
    show(table)
    today = datetime.date.today().isoformat()
    publish({"benchmark": "server_rules", "date": today, **machine(CPU), "rounds": args.rounds, "rows": rows}, args.json)


def sensible(way: Way, exchanged: str, participants: int) -> bool:
    """Whether the way is allowed, and does not take minutes."""
    size = SIZES[exchanged]
    if way.config.robust == "trimmed_mean":
        return 4 * size * participants <= MOST_GATHERED
    return not way.secure or size * participants**2 <= MOST_MASKED


def measured(way: Way, exchanged: str, participants: int, rounds: int) -> dict:
    """Seconds of a round's exchange, and the bytes that it hands to collectives."""
    size, world = SIZES[exchanged], World(0, 1, CPU)
    asked = Asked(participants, participants)
    bounded = None if way.z is None else Bounded(1.0, asked, way.z, way.noise, Draws.from_seed(0))
    server = Server(
        Layout({"x": (size,)}, {"x": MEAN}),
        {SHARED: torch.zeros(size)},
        world,
        rules_from(way.config, way.secure, bounded, ServerRules(), size),
    )
    rows = 0.01 * torch.randn(participants, size, generator=torch.Generator().manual_seed(0))
    ids, best = list(range(participants)), float("inf")
    for round_ in range(1, rounds + 1):
        world.ledger.open_round()
        start = time.perf_counter()
        server.round(Uploads(round_, ids, [1] * participants, ids, rows))
        best = min(best, time.perf_counter() - start)
    payload = world.ledger.close_round(size, Moved(participants * size, participants * size), 4)["payload_bytes"]
    keys = key_bytes(participants) if way.secure else 0
    return {
        "exchanged": exchanged, "participants": participants, "server": way.name, "seconds": best, "payload_bytes": payload,
        "key_bytes_modelled": keys,
    }  # fmt: skip


if __name__ == "__main__":
    main()
