"""How each client comes along: its accuracies round by round, the mean, and who is worst and best in the end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pfedmma.records.evaluated import ClientScores
from pfedmma.records.rows import COLUMNS, TITLES
from pfedmma.report import charts
from pfedmma.report.charts import Curve
from pfedmma.report.document import Figure
from pfedmma.report.runs import Report
from pfedmma.system.console import percent

Line = list[tuple[float, float | None]]  # (round, accuracy)
MEAN, WORST, BEST = 0, 1, 2  # the looks of the lines that are named


def figure(runs: Sequence[Report]) -> Figure | None:
    """Local of the clients of each run, and all else that is tested where there is one run; None where it is not recorded."""
    recorded = [(run, found) for run in runs if (found := [(row.round, row.per_client) for row in run.rounds if row.per_client])]
    panels = []
    for run, found in recorded:
        about = f"{run.label}: " if len(recorded) > 1 else ""
        panels += [_panel(about, column, lines) for column in COLUMNS[: 1 if about else None] if (lines := _lines(found, column))]
    return Figure(panels, charts.key([(MEAN, "mean"), (WORST, "worst client at the end"), (BEST, "best")])) if panels else None


def _lines(found: Sequence[tuple[int, ClientScores]], column: str) -> dict[int, Line]:
    """The line of each client that is tested in the ``column`` in any of these rounds."""
    rounds = [(float(round_), dict(zip(each.clients, each.columns.get(column, ()), strict=False))) for round_, each in found]
    clients = sorted({client for _, values in rounds for client, value in values.items() if value is not None})
    return {client: [(round_, values.get(client)) for round_, values in rounds] for client in clients}


def _panel(about: str, column: str, lines: dict[int, Line]) -> tuple[str, charts.Element]:
    """A drawing of the lines of all clients, with its caption."""
    means = [_mean(points) for points in zip(*lines.values(), strict=True)]
    last = {client: [value for _, value in line if value is not None][-1] for client, line in lines.items()}
    worst, best = min(last, key=lambda client: (last[client], client)), max(last, key=lambda client: (last[client], -client))
    named = [Curve("mean", means, MEAN)]
    if worst != best:
        named += [Curve(f"client {worst}", lines[worst], WORST), Curve(f"client {best}", lines[best], BEST)]
    thin = [Curve(f"client {client}", line, None) for client, line in lines.items()]
    said = [f"{about}{TITLES[column]} of {len(lines)} clients, percent"]
    said += [f"at the end worst {worst} ({percent(last[worst])}), best {best} ({percent(last[best])})"]
    if (together := charts.stride(len(means), charts.most_in_bundle(len(lines)))) > 1:
        said.append(f"each point is the mean of {together} evaluations")
    return "; ".join(said), charts.bundle(thin, named, lambda v: f"{v:.4g}")


def _mean(points: Sequence[tuple[float, float | None]]) -> tuple[float, float | None]:
    """The mean over clients of what they reach in one round."""
    known = [value for _, value in points if value is not None]
    return points[0][0], statistics.fmean(known) if known else None
