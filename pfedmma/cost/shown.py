"""The costs at the terminal: what travels, how long that takes, a local step, and the frozen backbone apart; all of it as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from pfedmma.cost.lines import Line
from pfedmma.system.console import megabytes, table_that_fits
from pfedmma.system.csv_text import as_csv

Column = tuple[str, Callable[[Line], str]]
RING = "ring: what each rank of a ring all-reduce of FedAvg's sum sends, 2(n-1)/n x payload"


def csv(lines: Sequence[Line]) -> str:
    """A line for each of ``lines``, with all columns."""
    rows = [line.cells for line in lines]
    return as_csv([list(rows[0]), *(list(row.values()) for row in rows)])


def tables(lines: Sequence[Line], width: int) -> list[Table]:
    """What travels, how long that takes, and a local step where one was counted; of at most ``width`` characters."""
    first = lines[0]
    rounds, own = first.exchange.rounds, [line for line in lines if line.ranks == first.ranks]  # without the others of its combination
    counts = ", ".join(dict.fromkeys(f"{line.clients}" for line in lines))
    whole = f"a round: of one client; the run: of all, {rounds.count:,} rounds, {counts} clients, {rounds.each:g} participants a round" + (
        " (of the first)" if "," in counts else ""
    )
    names = _names(own)
    alone = [line for line in own if (line.exchange.wire, line.clients) == (first.exchange.wire, first.clients)]
    found = [
        _table(f"what travels: {first.config.backbone.name}", [*names, *_MOVED], own, width, whole),
        _table("a round's exchange (modelled): seconds of a client, bytes of a rank", [*names, *_modelled(lines)], own, width, RING),
    ]
    if any(line.step for line in alone):
        found.append(_table(_step_title(first), [*names[:1], *_STEP], alone, width, _STEP_CAPTION))
    return found


def delivery(line: Line) -> str:
    """One line about the frozen weights, which every client needs once whatever the method."""
    times = ", ".join(f"{seconds(link.seconds(0, line.delivery))} s {link.name}" for link in line.links)
    weights = f"{line.config.backbone.name} has {line.backbone:,} frozen weights, {megabytes(line.delivery)} in fp32"
    return f"once a client, apart from all rounds: {weights}" + (f"; modelled: {times}" if times else "")


def seconds(value: float) -> str:
    """Seconds to three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.1e}"


def _table(title: str, columns: Sequence[Column], lines: Sequence[Line], width: int, caption: str) -> Table:
    return table_that_fits(title, [name for name, _ in columns], [[cell(line) for _, cell in columns] for line in lines], width, caption)


def _names(lines: Sequence[Line]) -> list[Column]:
    """The method, and what differs between the lines besides."""
    found: list[Column] = [("method", lambda line: line.method)]
    if len({line.exchange.wire for line in lines}) > 1:
        found.append(("wire", lambda line: line.exchange.wire))
    if len({line.clients for line in lines}) > 1:
        found.append(("clients", lambda line: f"{line.clients}"))
    return found


_MOVED: list[Column] = [
    ("trained\nnumbers", lambda line: f"{line.exchange.method.layout.trained_count:,}"),
    ("exchanged\nnumbers", lambda line: f"{line.exchange.method.layout.exchanged_size:,}"),
    ("up, bytes\na round", lambda line: f"{line.exchange.up:,}"),
    ("down, bytes\na round", lambda line: f"{line.exchange.down:,}"),
    ("up\nthe run", lambda line: megabytes(line.exchange.up_of_run)),
    ("down\nthe run", lambda line: megabytes(line.exchange.down_of_run)),
]


def _modelled(lines: Sequence[Line]) -> list[Column]:
    """A column for each link, then one for each number of ranks."""
    found: list[Column] = []
    for link in lines[0].links:
        found.append((f"{link.name}\ns", lambda line, link=link: seconds(line.seconds(link))))  # type: ignore[misc]
    for ranks in dict.fromkeys(line.ranks for line in lines):
        found.append((f"ring of {ranks}\nbytes", lambda line, ranks=ranks: f"{line.exchange.ring(ranks):,.0f}"))  # type: ignore[misc]
    return found


_STEP: list[Column] = [
    ("GFLOP", lambda line: "-" if line.step is None else f"{line.step.flop / 1e9:,.1f}"),
    ("kept for gradients", lambda line: "-" if line.step is None else megabytes(line.step.kept_bytes)),
    ("its tensors", lambda line: megabytes(line.state)),
    ("kept of it", lambda line: megabytes(line.kept)),
]
_STEP_CAPTION = (
    "counted on shapes, as on a GPU: products and attention, two operations a multiply-add\n"
    "its tensors, in fp32: weights, gradients, optimizer state, and what local.rule adds\n"
    "kept of it: what a client has of its own between rounds"
)


def _step_title(line: Line) -> str:
    config = line.config
    return f"a local step of one client: {config.federation.batch_size} images, {line.classes} classes, {config.backbone.precision}"
