"""How good the models are: the final table, curves over rounds, and who among the clients gains or loses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from pfedmma.report import charts
from pfedmma.report.charts import Curve
from pfedmma.report.document import Block, Cell, Figure, Section, Table, Text
from pfedmma.report.runs import Accuracy, Member, Report, minus, same_setting, with_looks
from pfedmma.system.console import megabytes, percent

NAMES = {"local": "Local", "base": "Base", "novel": "Novel", "hm": "HM", "hm_base_novel": "HM of Base and Novel", "unseen": "Unseen domain"}
TESTED = ("local", "base", "novel")
MOST_ROWS = 60  # clients that are drawn one by one
WORST = 5  # clients that are listed, of one run; 3 of each of several
MOST_CLASSES = 8


def final(runs: Sequence[Report]) -> Section:
    """The accuracies of every run beside zero-shot, and their spread over clients."""
    blocks: list[Block] = []
    groups = same_setting(runs)
    for group in groups:
        rows = _rows(group)
        if all(row.accuracy is None for row in rows):
            blocks.append(
                Text("Nothing was evaluated: evaluation.every=0 in these runs." if group[0].finished else "Nothing is evaluated yet.")
            )
            continue
        about = f" on {group[0].dataset} ({group[0].protocol}), {group[0].backbone}, seed {group[0].seed}" if len(groups) > 1 else ""
        blocks += [_means(rows, f"Accuracy in percent{about}; beside it the difference from zero-shot"), _spread(rows, about)]
        if any(row.accuracy.domains for row in rows if row.accuracy):
            blocks.append(_domains(rows, about))
    return Section("accuracy", "Accuracy", blocks)


class Row(NamedTuple):
    """A line of the final tables; ``up``: bytes a client and round."""

    label: str
    accuracy: Accuracy | None
    up: float | None

    def score(self, name: str) -> float | None:
        return self.accuracy.scores.get(name) if self.accuracy else None


def _rows(group: Sequence[Report]) -> list[Row]:
    """Zero-shot, then the runs, of which a zero-shot run is the reference itself."""
    reference = next((run.zero_shot for run in group if run.zero_shot), None)
    runs = [Row(run.label if run.finished else f"{run.label} (so far)", run.accuracy, run.up) for run in group if run.method != "zeroshot"]
    return [Row("zero-shot", reference, 0.0), *runs] if reference else runs or [Row(run.label, run.accuracy, run.up) for run in group]


def _present(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(row.score(name) is not None for row in rows)]


def _means(rows: Sequence[Row], caption: str) -> Table:
    columns = _present(rows, list(NAMES))
    reference = rows[0].accuracy.scores if rows[0].label == "zero-shot" and rows[0].accuracy else {}
    values = {name: [row.score(name) for row in rows] for name in columns}
    best = {name: max((v for v in column[bool(reference) :] if v is not None), default=None) for name, column in values.items()}
    several = len(rows) - bool(reference) > 1
    table: list[list[Cell | str]] = []
    for i, row in enumerate(rows):
        cells: list[Cell | str] = []
        for name in columns:
            value, gain = values[name][i], minus(values[name][i], reference.get(name))
            note = f"{gain:+.2f}" if gain is not None and not (reference and i == 0) else ""
            cells.append(Cell(percent(value), note, several and i >= bool(reference) and value is not None and value == best[name]))
        table.append([row.label, *cells, "-" if row.up is None else megabytes(row.up)])
    return Table(caption, ("run", *(NAMES[name] for name in columns), "up / client / round"), table)


def _spread(rows: Sequence[Row], about: str) -> Table:
    kinds = ("", "_std", "_worst", "_worst_decile")
    table = [
        [row.label, NAMES[name], *(percent(row.score(name + kind)) for kind in kinds)]
        for name in _present(rows, [*TESTED, "unseen"])
        for row in rows
        if row.score(name) is not None
    ]
    columns = ("run", "of", "mean", "standard deviation", "worst client", "worst decile")
    return Table(f"Spread over clients in percent{about}", columns, table, (1,))


def _domains(rows: Sequence[Row], about: str) -> Table:
    with_domains = [(row.label, row.accuracy) for row in rows if row.accuracy and row.accuracy.domains]
    names = dict.fromkeys(name for _, accuracy in with_domains for name in accuracy.domains)
    table: list[list[Cell | str]] = [[name, *(percent(accuracy.domains.get(name)) for _, accuracy in with_domains)] for name in names]
    table.append(["average of domains", *(percent(accuracy.scores.get("domain_average")) for _, accuracy in with_domains)])
    return Table(f"Local by domain in percent{about}", ("domain", *(label for label, _ in with_domains)), table)


def curves(runs: Sequence[Report]) -> Section:
    """Loss and accuracies over rounds, all runs in each drawing."""
    drawn = with_looks(runs)
    if not drawn:
        return Section("curves", "Over rounds", [Text("There is no metrics.jsonl, so there are no curves.")])
    losses = [Curve(run.label, [(float(row.number), row.loss) for row in run.rounds], i) for i, run in drawn]
    panels = [("Training loss", charts.line_chart(losses, lambda v: f"{v:.4g}"))]
    for name in (*TESTED, "hm", "unseen"):
        lines = [
            Curve(run.label, [(float(row.number), row.accuracy.scores.get(name)) for row in run.rounds if row.accuracy], i)
            for i, run in drawn
        ]
        if not any(value is not None for line in lines for _, value in line.points):
            continue
        levels = {f"{v:.2f}": v for _, run in drawn if run.zero_shot and (v := run.zero_shot.scores.get(name)) is not None}
        levels_shown = [("zero-shot", v) for v in levels.values()] if len(levels) <= 3 else []
        panels.append((f"{NAMES[name]}, percent", charts.line_chart(lines, lambda v: f"{v:.4g}", levels_shown)))
    blocks: list[Block] = [Figure(panels, charts.key([(i, run.label) for i, run in drawn]))]
    if (means := max(charts.stride(len(run.rounds)) for _, run in drawn)) > 1:
        blocks.insert(0, Text(f"Of the longest run each point is the mean of {means} rounds."))
    return Section("curves", "Over rounds", blocks)


def clients(runs: Sequence[Report]) -> Section:
    """Who gains and who loses against zero-shot."""
    shown = [run for run in runs if run.method != "zeroshot" and any(member.scores["local"] is not None for member in run.members)]
    if not shown:
        return Section("clients", "Clients", [Text("There are no accuracies of single clients in these runs.")])
    blocks: list[Block] = []
    compared = [run for run in shown if any(member.gain("local") is not None for member in run.members)]
    if compared:
        blocks.append(_gains(compared))
    if len(compared) < len(shown):
        missing = ", ".join(run.label for run in shown if run not in compared)
        blocks.append(Text(f"The zero-shot accuracy of single clients is not recorded in {missing}: only what its clients reach is shown."))
    blocks.append(Figure([_panel(run, shown) for run in shown]))
    blocks.append(_worst(shown))
    return Section("clients", "Clients", blocks)


def _gains(runs: Sequence[Report]) -> Table:
    rows = []
    for run in runs:
        for name in TESTED:
            gains = [gain for member in run.members if (gain := member.gain(name)) is not None]
            if gains:
                counts = [sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), sum(gain == 0 for gain in gains)]
                points = [statistics.median(gains), min(gains), max(gains)]
                rows.append([run.label, NAMES[name], *(f"{n:,}" for n in counts), *(f"{v:+.2f}" for v in points)])
    columns = ("run", "of", "clients that gain", "lose", "unchanged", "median", "lowest", "highest")
    return Table("Clients against zero-shot; differences in points of percent", columns, rows, (1,))


def _panel(run: Report, shown: Sequence[Report]) -> tuple[str, charts.Element]:
    """Local of a run's clients: one row each while there are few, else a histogram."""
    members = _ranked(run)
    known = any(member.gain("local") is not None for member in members)
    about = f"{run.label}: " if len(shown) > 1 else ""
    if len(members) > MOST_ROWS:
        values = [v for member in members if (v := member.gain("local") if known else member.scores["local"]) is not None]
        unit = "points of Local over zero-shot" if known else "Local, percent"
        return f"{about}{len(values):,} clients by {unit}", charts.histogram(values, unit, known)
    rows = [
        (
            f"{member.id} {member.domain}".strip()[:15],
            (member.zero_shot or {}).get("local"),
            member.scores["local"],
            f"client {member.id}: Local {percent(member.scores['local'])}, zero-shot {percent((member.zero_shot or {}).get('local'))}; "
            + _classes(member),
        )
        for member in reversed(members)
    ]
    span = [v for one in shown if len(one.members) <= MOST_ROWS for m in one.members for v in _ends(m) if v is not None]
    what = "Local of each client, from zero-shot (hollow) to the end (filled), by gain" if known else "Local of each client"
    return about + what, charts.dumbbells(rows, span)


def _ends(member: Member) -> tuple[float | None, float | None]:
    return member.scores["local"], (member.zero_shot or {}).get("local")


def _ranked(run: Report) -> list[Member]:
    """The tested clients, from the one that loses most (or, without a reference, is worst) on."""
    tested = [member for member in run.members if member.scores["local"] is not None]

    def rank(member: Member) -> tuple[float, float]:
        gain, local = member.gain("local"), member.scores["local"] or 0.0
        return (local if gain is None else gain), local

    return sorted(tested, key=rank)


def _worst(shown: Sequence[Report]) -> Table:
    """The clients at the bottom of `_ranked`, with what they hold."""
    several, domains = len(shown) > 1, any(member.domain for run in shown for member in run.members)
    rows: list[list[Cell | str]] = []
    for run in shown:
        for member in _ranked(run)[: 3 if several else WORST]:
            gain = member.gain("local")
            numbers = [
                percent((member.zero_shot or {}).get("local")),
                percent(member.scores["local"]),
                "-" if gain is None else f"{gain:+.2f}",
            ]
            held = [member.domain or "-"] * domains + [_classes(member)]
            rows.append([*[run.label] * several, str(member.id), *numbers, str(member.train), *held])
    columns = [*["run"] * several, "client", "zero-shot Local", "Local", "gain", "training images", *["domain"] * domains, "classes"]
    caption = "Clients that gain least, or without a zero-shot accuracy have the lowest Local"
    return Table(caption, columns, rows, [i for i, name in enumerate(columns) if name in ("domain", "classes")])


def _classes(member: Member) -> str:
    more = len(member.classes) - MOST_CLASSES
    return ", ".join(member.classes[:MOST_CLASSES]) + (f" and {more} more" if more > 0 else "")
