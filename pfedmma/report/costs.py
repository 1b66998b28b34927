"""What a run costs: bytes, the ledger's four numbers kept apart, and seconds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from pfedmma.records.rows import RoundRow
from pfedmma.report import bars, charts
from pfedmma.report.charts import Curve
from pfedmma.report.document import Block, Cell, Figure, Section, Table, Text
from pfedmma.report.runs import Report, ratio, with_curves
from pfedmma.report.wire import Wire
from pfedmma.system.console import megabytes

PARTS = {
    "compute": "train", "input": "input", "wait": "wait", "exchange": "exchange", "fine-tuning": "fine_tune", "evaluate": "evaluate",
}  # fmt: skip
OPTIONAL = ("fine-tuning",)  # shown where there is any
NONE = "-"


def communication(runs: Sequence[Report], wire: Wire | None) -> Section:
    """Bytes between clients and server, against alternatives; then what collectives carried, and how long."""
    blocks: list[Block] = [_clients_bytes(runs), *_lost(runs), _against(runs)]
    drawn = with_curves(runs)
    others = [(name, each) for name, each in _alternatives(runs) if each > 0]
    panels = [("Bytes up a client and round", bars.bars(_bars(runs)))]
    if drawn:
        references = [Curve(name, _cumulative(drawn[0].rounds, 2 * each), None) for name, each in others]
        lines = [*references, *(Curve(run.label, moved_by_round(run.rounds), run.look) for run in drawn)]
        panels.append(("Bytes up and down so far, all participants", charts.line_chart(lines, brief, logarithmic=True)))
    blocks.append(Figure(panels, charts.key_of(drawn)))
    nothing = [run.label for run in runs if run.up == 0 and not run.is_reference]
    if nothing:
        blocks.append(Text(f"{', '.join(nothing)}: nothing travels, which a logarithmic axis cannot show."))
    blocks += [_collectives(runs), _times(runs)]
    if wire:
        blocks.append(wire.table())
    return Section("communication", "Communication", blocks)


def _clients_bytes(runs: Sequence[Report]) -> Table:
    rows = []
    for run in runs:
        each = [_mean([row.comm.uplink_bytes for row in run.rounds]), _mean([row.comm.downlink_bytes for row in run.rounds])]
        participants = _mean([len(row.clients) for row in run.rounds])
        down = run.down if run.down is not None else ratio(each[1], participants)
        totals = [run.comm.uplink_bytes, run.comm.downlink_bytes]
        people = NONE if participants is None else f"{participants:,.1f}".removesuffix(".0")
        rows.append([run.label, exact(run.up), exact(down), people, *map(size, each), *map(size, totals)])
    columns = (
        "run",
        "up / client / round",
        "down / client / round",
        "participants",
        "up / round",
        "down / round",
        "up, all rounds",
        "down, all rounds",
    )
    return Table("What clients send and receive: participants x exchanged bytes, whatever the number of ranks", columns, rows)


def _lost(runs: Sequence[Report]) -> list[Table]:
    """What drop-outs and slow clients cost, where they are simulated."""
    rows = []
    for run in runs:
        if run.lost is None and run.simulated_seconds is None:
            continue
        sent, wasted, done = run.comm.uplink_bytes, run.comm.wasted_bytes, len(run.rounds)
        people = f" of {sum(len(row.clients) for row in run.rounds):,}" if done else ""
        counts = [NONE if run.lost is None else f"{run.lost.get(name, 0):,}{people}" for name in ("failed", "late")]
        share = NONE if wasted is None or not sent else f"{100 * wasted / sent:.1f} %"
        times = [run.simulated_seconds, ratio(run.simulated_seconds, done)]
        rows.append([run.label, *counts, size(wasted), share, *(NONE if value is None else f"{value:,.1f} s" for value in times)])
    columns = ("run", "failed", "late", "wasted up, all rounds", "of all up", "simulated time, all rounds", "simulated, a round")
    caption = "Uploads that did not count, and the time of rounds, as simulated: a client that is lost has trained and sent for nothing"
    return [Table(caption, columns, rows)] if rows else []


def _against(runs: Sequence[Report]) -> Table:
    others = _alternatives(runs)
    whole = max((each for name, each in others if name.startswith("all adapters")), default=None)
    own = [(run.label, run.up) for run in runs if run.up is not None and not run.is_reference]
    nothing = [] if any(each == 0 for _, each in own) else [("nothing (local)", 0.0)]
    entries = sorted({*others, *own, *nothing}, key=lambda entry: (entry[1], entry[0]))
    rows = [[name, exact(each), NONE if whole is None else f"{100 * each / whole:.2f} %"] for name, each in entries]
    caption = "Against alternatives on the same backbone: up a client and round"
    return Table(
        caption if others else f"{caption} (the sizes of alternatives are not recorded)",
        ("what travels", "bytes", "of all adapters"),
        rows,
    )


def _alternatives(runs: Sequence[Report]) -> list[tuple[str, float]]:
    """(name, bytes) of what the runs might have sent instead; with the run's name where runs differ."""
    found: dict[str, dict[float, str]] = {}
    for run in runs:
        for name, each in run.alternatives.items():
            found.setdefault(name, {}).setdefault(each, run.label)
    return [(name if len(sizes) == 1 else f"{name} ({label})", each) for name, sizes in found.items() for each, label in sizes.items()]


def _bars(runs: Sequence[Report]) -> list[tuple[str, float, str, str]]:
    own = dict.fromkeys((run.group, run.up, exact(run.up), charts.colour(run.look)) for run in runs if run.up is not None)
    others = [(name, each, exact(each), "other") for name, each in _alternatives(runs)]
    return sorted([*own, *others], key=lambda row: row[1])


def moved_by_round(rounds: Sequence[RoundRow]) -> list[tuple[float, float | None]]:
    """(round, bytes that all participants have sent and received by then)."""
    each = [float(row.comm.uplink_bytes + row.comm.downlink_bytes) for row in rounds]
    return [(float(row.round), moved) for row, moved in zip(rounds, itertools.accumulate(each), strict=True)]


def _cumulative(rounds: Sequence[RoundRow], each: float) -> list[tuple[float, float | None]]:
    moved = itertools.accumulate(len(row.clients) * each for row in rounds)
    return [(float(row.round), value) for row, value in zip(rounds, moved, strict=True)]


def _collectives(runs: Sequence[Report]) -> Table:
    rows = []
    for run in runs:
        payload = _mean([row.comm.payload_bytes for row in run.rounds])
        ring = _mean([row.comm.ring_bytes_per_rank for row in run.rounds])
        moved = [exact(payload), size(run.comm.payload_bytes), exact(ring), size(run.comm.ring_bytes_per_rank)]
        book = size(sum(part["payload_bytes"] for part in run.comm.bookkeeping.values())) if run.comm.bookkeeping else NONE
        ranks = NONE if run.world_size is None else f"{run.world_size:,}"
        rows.append([run.label, ranks, f"{run.comm.collectives:,}", *moved, book])
    columns = (
        "run", "ranks", "exchanges", "payload / round", "payload, all rounds",
        "ring model / rank / round", "ring model / rank, all rounds", "bookkeeping payload",
    )  # fmt: skip
    return Table("What ranks hand to collectives; the ring model, 2 (n-1)/n x payload, is what a ring moves per rank", columns, rows)


def _times(runs: Sequence[Report]) -> Table:
    names = {"p50, µs": "time_us_p50", "p95, µs": "time_us_p95", "algbw, GB/s": "algbw_gb_per_s", "busbw, GB/s": "busbw_gb_per_s"}
    rows = []
    for run in runs:
        moved, alone = run.comm.collectives > 0, run.world_size == 1  # one rank moves nothing, so it has no bandwidth
        values = [getattr(run.comm, key) if moved and not (alone and "bw_" in key) else None for key in names.values()]
        rows.append([run.label, *(NONE if v is None else f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in values)])
    return Table("Measured time of an exchange, after every rank has arrived; bandwidths at p50", ("run", *names), rows)


def times(runs: Sequence[Report]) -> Section:
    """Where the seconds of a round go; the first round, which warms up, is left out where there are others."""
    drawn = with_curves(runs)
    names = parts_of([row for run in drawn for row in run.rounds])
    if not drawn:
        return Section("time", "Time", [Text("There is no metrics.jsonl, so there are no times of rounds.")])
    rows: list[list[Cell | str]] = []
    spent: dict[str, list[dict[str, float]]] = {}
    for run in drawn:
        parts = {name: seconds for name, seconds in split(run.rounds[1:] or run.rounds).items() if name in names}
        total = sum(parts.values())
        cells = [Cell(duration(value), f"{100 * value / total:.1f} %" if total else "") for value in parts.values()]
        speed = NONE if run.images_per_second is None else f"{run.images_per_second:,.0f}"
        rows.append([run.label, duration(total), *cells, speed])
        spent.setdefault(run.group, []).append(parts)
    means = {label: {name: statistics.fmean(each[name] for each in group) for name in names} for label, group in spent.items()}
    stacks = [(label, f"{duration(sum(parts.values()))} a round", list(parts.items())) for label, parts in means.items()]
    seconds = [Curve(run.label, [(float(row.round), row.seconds.get("total")) for row in run.rounds], run.look) for run in drawn]
    panels = [
        ("Where a round's seconds go, mean over rounds", bars.stacked(stacks)),
        ("Seconds of each round", charts.line_chart(seconds, lambda v: f"{v:.3g}")),
    ]
    caption = "Seconds of a round, mean over rounds without the first; compute and input together are training"
    table = Table(caption, ("run", "a round", *names, "training images / s"), rows)
    return Section("time", "Time", [table, Figure(panels, charts.key_of(drawn))])


def parts_of(rounds: Sequence[RoundRow]) -> list[str]:
    """The parts to show of these rounds."""
    return [name for name, key in PARTS.items() if name not in OPTIONAL or any(row.spent(key) for row in rounds)]


def split(rounds: Sequence[RoundRow]) -> dict[str, float]:
    """Mean seconds of the parts of a round; ``input`` is the part of training that waited for images."""
    means = {name: statistics.fmean(row.spent(key) for row in rounds) for name, key in PARTS.items()}
    return means | {"compute": max(0.0, means["compute"] - means["input"])}


def exact(count: float | None) -> str:
    return NONE if count is None else f"{count:,.0f} B"


def brief(count: float) -> str:
    """Bytes with the three digits that a drawing has room for."""
    unit, name = next(((unit, name) for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= unit), (1.0, "B"))
    return f"{count / unit:.3g} {name}"


def duration(seconds: float) -> str:
    unit, name = next(((unit, name) for unit, name in ((1.0, "s"), (1e-3, "ms")) if seconds >= unit), (1e-6, "µs"))
    return f"{seconds / unit:.3g} {name}"


def size(count: float | None) -> str:
    return NONE if count is None else megabytes(count)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
