"""Who among the clients gains and who loses against zero-shot, and when."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pfedmma.records.rows import COLUMNS, IN_HM, TITLES, ClientResult
from pfedmma.report import bars, charts, client_curves
from pfedmma.report.document import Block, Cell, Details, Figure, Section, Table, Text
from pfedmma.report.runs import Report
from pfedmma.system.console import percent

MOST_ROWS = 60  # clients that are drawn one by one
WORST = 5  # clients that are listed, of one run; 3 of each of several
MOST_CLASSES = 8
MOST_OPEN = 30  # lines of the table of all clients that are shown at once


def section(runs: Sequence[Report]) -> Section:
    """Who gains and who loses against zero-shot, at the end and round by round."""
    shown = [run for run in runs if not run.is_reference and any(client.scores["local"] is not None for client in run.clients)]
    drawn = list({run.group: run for run in reversed(runs) if not run.is_reference}.values())[::-1]  # of each group the first run
    curves = client_curves.figure(drawn)
    if not shown:
        if curves:  # of a run that is still going on
            return Section("clients", "Clients", [curves])
        return Section("clients", "Clients", [Text("There are no accuracies of single clients in these runs.")])
    blocks: list[Block] = []
    compared = [run for run in shown if any(client.gain("local") is not None for client in run.clients)]
    if compared:
        blocks.append(_gains(compared))
    if len(compared) < len(shown):
        missing = ", ".join(run.label for run in shown if run not in compared)
        blocks.append(Text(f"The zero-shot accuracy of single clients is not recorded in {missing}: only what its clients reach is shown."))
    first = [run for run in shown if any(run is one for one in drawn)]
    if len(first) < len(shown):
        blocks.append(
            Text(f"Drawn are the clients of {', '.join(run.label for run in first)}; the table of all clients has the other seeds.")
        )
    blocks.append(Figure([_panel(run, first) for run in first]))
    if curves:
        blocks.append(curves)
    blocks += [_worst(first), _all(shown)]
    return Section("clients", "Clients", blocks)


def _gains(runs: Sequence[Report]) -> Table:
    rows = []
    for run in runs:
        for name in IN_HM:
            gains = [gain for client in run.clients if (gain := client.gain(name)) is not None]
            if gains:
                counts = [sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), sum(gain == 0 for gain in gains)]
                points = [statistics.median(gains), min(gains), max(gains)]
                rows.append([run.label, TITLES[name], *(f"{n:,}" for n in counts), *(f"{v:+.2f}" for v in points)])
    columns = ("run", "of", "clients that gain", "lose", "unchanged", "median", "lowest", "highest")
    return Table("Clients against zero-shot; differences in points of percent", columns, rows, (1,))


def _panel(run: Report, shown: Sequence[Report]) -> tuple[str, charts.Element]:
    """Local of a run's clients: one row each while there are few, else a histogram."""
    clients = _ranked(run)
    known = any(client.gain("local") is not None for client in clients)
    about = f"{run.label}: " if len(shown) > 1 else ""
    if len(clients) > MOST_ROWS:
        values = [v for client in clients if (v := client.gain("local") if known else client.scores["local"]) is not None]
        unit = "points of Local minus zero-shot" if known else "Local, percent"
        return f"{about}{len(values):,} clients by {unit}", bars.histogram(values, unit, known)
    rows = [_row(client) for client in reversed(clients)]
    span = [v for one in shown if len(one.clients) <= MOST_ROWS for client in one.clients for v in _ends(client) if v is not None]
    what = "Local of each client, from zero-shot (hollow) to the end (filled), by gain" if known else "Local of each client"
    return about + what, bars.dumbbells(rows, span)


def _row(client: ClientResult) -> tuple[str, float | None, float | None, str]:
    """A row of `charts.dumbbells`."""
    before, after = _ends(client)
    return f"{client.id} {client.domain or ''}".strip()[:15], before, after, described(client)


def described(client: ClientResult) -> str:
    """A client in a line."""
    before, after = _ends(client)
    return f"client {client.id}: Local {percent(after)}, zero-shot {percent(before)}; {_classes(client)}"


def _ends(client: ClientResult) -> tuple[float | None, float | None]:
    """Local of zero-shot and at the end."""
    return (client.zero_shot or {}).get("local"), client.scores["local"]


def _ranked(run: Report) -> list[ClientResult]:
    """The tested clients, from the one that loses most (or, without a reference, is worst) on."""
    tested = [client for client in run.clients if client.scores["local"] is not None]

    def rank(client: ClientResult) -> tuple[float, float]:
        gain, local = client.gain("local"), client.scores["local"] or 0.0
        return (local if gain is None else gain), local

    return sorted(tested, key=rank)


def _worst(shown: Sequence[Report]) -> Table:
    """The clients at the bottom of `_ranked`, with what they hold."""
    several, domains = len(shown) > 1, any(client.domain for run in shown for client in run.clients)
    rows: list[list[Cell | str]] = []
    for run in shown:
        for client in _ranked(run)[: 3 if several else WORST]:
            gain = client.gain("local")
            numbers = [*map(percent, _ends(client)), "-" if gain is None else f"{gain:+.2f}"]
            held = [client.domain or "-"] * domains + [_classes(client)]
            rows.append([*[run.label] * several, str(client.id), *numbers, str(client.train_samples), *held])
    columns = [*["run"] * several, "client", "zero-shot Local", "Local", "gain", "training images", *["domain"] * domains, "classes"]
    caption = "Clients that gain least, or without a zero-shot accuracy have the lowest Local"
    return Table(caption, columns, rows, [i for i, name in enumerate(columns) if name in ("domain", "classes")])


def _all(shown: Sequence[Report]) -> Details:
    """Every client, to be looked up and sorted."""
    several, domains = len(shown) > 1, any(client.domain for run in shown for client in run.clients)
    tested = [name for name in COLUMNS[1:] if any(client.scores.get(name) is not None for run in shown for client in run.clients)]
    rows: list[list[Cell | str]] = []
    for run in shown:
        for client in run.clients:
            gain = client.gain("local")
            numbers = [*map(percent, _ends(client)), "-" if gain is None else f"{gain:+.2f}"]
            numbers += [percent(client.scores.get(name)) for name in tested]
            held = [f"{client.train_samples:,}", f"{client.test_samples:,}", f"{len(client.classes):,}"]
            rows.append([str(client.id), *[run.label] * several, *[client.domain or "-"] * domains, *numbers, *held])
    columns = ["client", *["run"] * several, *["domain"] * domains, "zero-shot Local", "Local", "gain", *(TITLES[name] for name in tested)]
    words = [i for i, name in enumerate(columns) if name in ("run", "domain")]
    columns += ["training images", "test images", "classes"]
    caption = f"All {len(rows):,} clients; a click on the head of a column sorts by it"
    return Details(Table(caption, columns, rows, words, sortable=True), open=len(rows) <= MOST_OPEN)


def _classes(client: ClientResult) -> str:
    more = len(client.classes) - MOST_CLASSES
    return ", ".join(client.classes[:MOST_CLASSES]) + (f" and {more} more" if more > 0 else "")
