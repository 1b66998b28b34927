"""What was run, and where: the sections that compare settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pfedmma.report.document import Block, Cell, Details, Facts, Section, Table, Text
from pfedmma.report.runs import Report
from pfedmma.system.console import percent

UNKNOWN = "not recorded"
PAGE = "report.html"
# What a reader wants first -> the settings that say it.
FIRST = {
    "clients": ("data.clients",),
    "images a class": ("data.shots",),
    "local epochs": ("federation.local_epochs",),
    "participation": ("federation.participation",),
    "batch size": ("federation.batch_size",),
    "optimizer": ("optimizer.name", "optimizer.lr", "optimizer.momentum", "optimizer.weight_decay", "optimizer.state"),
}
SAID = ("seed", "data.name", "data.protocol", "method.name", "backbone.name", "backbone.precision", "federation.rounds")


def about(runs: Sequence[Report]) -> str:
    """Whether the runs are finished, when, how long they took, and by which code, in a line."""
    if len(runs) == 1:
        facts = made(runs[0])
        said = [facts["state"], facts["date"], facts["duration"], f"revision {facts['revision']}" * (facts["revision"] != UNKNOWN)]
    else:
        states = [run.state for run in runs]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        whole = [run.seconds for run in runs if run.seconds is not None]
        said = [f"{len(runs)} runs: {counts}", max(made(run)["date"] for run in runs), f"{spoken(sum(whole))} together" * bool(whole)]
    return " \u00b7 ".join(part for part in said if part)


def made(run: Report) -> dict[str, str]:
    """How and when a run was made."""
    origin, seconds = run.origin, run.seconds
    date = origin.finished[:16].replace("T", " ") + " UTC" if origin and origin.finished else f"{run.written} (of its files)"
    return {
        "state": run.state,
        "date": date,
        "duration": f"{spoken(seconds)} in {len(run.rounds)} rounds" if seconds is not None else UNKNOWN,
        "revision": origin.revision if origin and origin.revision else UNKNOWN,
        "pfedmma": run.version or run.environment.get("pfedmma", UNKNOWN),
        "command": origin.command if origin else UNKNOWN,
        "folder": str(run.path),
    }


def spoken(seconds: float) -> str:
    """A duration as a person says it."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if whole < 60:
        return f"{seconds:.3g} s"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def index(runs: Sequence[Report], page: Path | None) -> list[Section]:
    """Of several runs a line for each, which leads to its own page where that lies below the folder of ``page``."""
    if len(runs) == 1:
        return []
    rows: list[list[Cell | str]] = []
    for run in runs:
        facts, hm = made(run), run.accuracy.score("hm") if run.accuracy else None
        told = [facts[name] for name in ("state", "date", "duration", "revision")]
        rows.append(
            [Cell(run.label, link=_link(run, page)), run.group, str(run.seed), percent(hm), *told, facts["folder"], facts["command"]]
        )
    columns = ("run", "method", "seed", "HM", "state", "date", "duration", "revision", "folder", "command")
    return [Section("runs", "Runs", [Table("By what and when each run was made", columns, rows, (1, 4, 5, 6, 7, 8, 9), sortable=True)])]


def _link(run: Report, page: Path | None) -> str:
    """From a page to that of a run; empty where there is none below the page's folder."""
    if page is None or not (own := run.path / PAGE).is_file():
        return ""
    path, home = own.resolve(), page.resolve().parent
    return str(path.relative_to(home)) if path.is_relative_to(home) and path != page.resolve() else ""


def section(runs: Sequence[Report]) -> Section:
    """Shared settings once, and of several runs what differs; of a single one, how and when it was made."""
    shared, different = sort_out([main_settings(run) for run in runs])
    labels = [run.label for run in runs]
    blocks: list[Block] = [Facts("The setting" if len(runs) == 1 else "What the runs share", list(shared.items()))]
    told = {name: values for name, values in different.items() if values != labels}
    if told:
        rows = [[label, *(values[i] for values in told.values())] for i, label in enumerate(labels)]
        blocks.append(Table("What differs", ("run", *told), rows, range(1, len(told) + 1)))
    elif different:
        blocks.append(Text(f"The runs differ in their {next(iter(different))}: {', '.join(labels)}."))
    blocks += [Facts("How it was made", list(made(runs[0]).items()))] if len(runs) == 1 else []
    return Section("setting", "Setting", blocks)


def main_settings(run: Report) -> dict[str, str]:
    """The settings by which a person knows a run."""
    done = len(run.rounds)
    planned = run.config.get("federation.rounds", str(done) if run.finished else "?")
    chosen = {"method": run.method, "data set": run.dataset, "protocol": run.protocol, "backbone": run.backbone}
    chosen["precision"] = run.environment.get("precision") or run.config.get("backbone.precision", UNKNOWN)
    chosen["rounds"] = planned if run.finished else f"{done} of {planned} so far"
    for name, keys in FIRST.items():
        values = [f"{key.split('.')[1].replace('_', ' ')} {value}" for key in keys if (value := run.config.get(key)) is not None]
        chosen[name] = ", ".join(values).replace("name ", "") if len(keys) > 1 else run.config.get(keys[0], "")
    chosen["images a class"] = "all" if chosen["images a class"] == "0" else chosen["images a class"]
    chosen["clients"] = chosen["clients"] or str(len(run.clients) or UNKNOWN)
    return {name: value or UNKNOWN for name, value in chosen.items()} | {
        "seed": str(run.seed),
        "ranks": UNKNOWN if run.world_size is None else str(run.world_size),
    }


def environment(runs: Sequence[Report]) -> Section:
    """Versions and device, and all settings for looking up."""
    machines = [{"ranks": UNKNOWN if run.world_size is None else str(run.world_size)} | run.environment for run in runs]
    same, other = sort_out(machines)
    blocks: list[Block] = [Facts("Versions and device", list(same.items()))] if same else []
    if other:
        blocks.append(_by_run("Versions and device that differ", other, runs))
    said = {*SAID, *(key for keys in FIRST.values() for key in keys)} if len(runs) > 1 else set()
    shared, different = sort_out([run.config for run in runs])
    different = {name: values for name, values in different.items() if name not in said}
    if different:
        blocks.append(Details(_by_run(f"{len(different)} further settings that differ", different, runs)))
    if shared:
        title = "Resolved configuration" if len(runs) == 1 else "Resolved configuration, as far as it is shared"
        blocks.append(Details(Facts(title, list(shared.items()))))
    return Section("environment", "Environment", blocks)


def sort_out(dicts: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """(what all say alike, what each says of the rest), in order of first mention."""
    names = dict.fromkeys(name for one in dicts for name in one)
    columns = {name: [one.get(name, "-") for one in dicts] for name in names}
    shared = {name: values[0] for name, values in columns.items() if len(set(values)) == 1}
    return shared, {name: values for name, values in columns.items() if name not in shared}


def _by_run(caption: str, different: Mapping[str, Sequence[str]], runs: Sequence[Report]) -> Table:
    rows = [[name, *values] for name, values in different.items()]
    return Table(caption, ("", *(run.label for run in runs)), rows, range(1, len(runs) + 1))
