"""Runs that differ in their seed alone are one group: what a method reaches is their mean, with an interval over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pfedmma.config.identity import change_of
from pfedmma.report.runs import Report, minus
from pfedmma.system.intervals import Interval, interval
from pfedmma.system.options import OUTSIDE, SAME_RESULT
from pfedmma.system.series import positions

Settings = dict[str, str]


@dataclass(frozen=True)
class Group:
    """``runs`` of one method, under the name and with the look that all their lines have."""

    label: str
    look: int
    runs: Sequence[Report]

    @property
    def is_reference(self) -> bool:
        return self.runs[0].is_reference

    @property
    def so_far(self) -> str:
        """Behind the label where a run of the group is not finished."""
        return "" if all(run.finished for run in self.runs) else " (so far)"

    @property
    def setting(self) -> str:
        return setting_of(self.runs[0])

    @property
    def up(self) -> float | None:
        """Bytes up a client and round."""
        return next((run.up for run in self.runs if run.up is not None), None)

    def score(self, name: str) -> Interval | None:
        """A score of the runs' accuracies; None where there is none."""
        return interval([value for run in self.runs if run.accuracy and (value := run.accuracy.score(name)) is not None])

    def zero_shot(self, name: str) -> Interval | None:
        return interval([value for run in self.runs if run.zero_shot and (value := run.zero_shot.score(name)) is not None])

    def gain(self, name: str) -> Interval | None:
        """Points over each run's own zero-shot accuracy."""
        return interval([gain for run in self.runs if (gain := minus(_score(run, name), _zero_shot(run, name))) is not None])

    def over(self, other: Group, name: str) -> Interval | None:
        """Points over another group's run of the same seed; None where they have no seed in common."""
        theirs = {run.seed: _score(run, name) for run in other.runs}
        return interval([gap for run in self.runs if (gap := minus(_score(run, name), theirs.get(run.seed))) is not None])


def _score(run: Report, name: str) -> float | None:
    return run.accuracy.score(name) if run.accuracy else None


def _zero_shot(run: Report, name: str) -> float | None:
    return run.zero_shot.score(name) if run.zero_shot else None


def setting_of(run: Report) -> str:
    """Data, protocol, backbone and what else the runs of a comparison have in common, in words."""
    shots, clients = run.config.get("data.shots", "0"), run.config.get("data.clients", "")
    said = [f"{run.dataset} ({run.protocol})", run.backbone, f"{clients} clients" * bool(clients)]
    said += [
        f"{shots} image{'s' * (shots != '1')} a class" * (shots != "0"),
        "validation split" * (run.config.get("evaluation.split") == "val"),
    ]
    return ", ".join(part for part in said if part)


def by_setting(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups that are compared with each other, by what they have in common."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.setting, []).append(group)
    return found


def grouped(runs: Sequence[Report]) -> tuple[list[Report], list[Group]]:
    """The runs, with a label and a look by their group, and the groups."""
    change, found, seen = change_of(), dict[tuple[object, ...], list[int]](), Counter[tuple[object, ...]]()
    for number, run in enumerate(runs):
        alike = (setting_of(run), run.name, *sorted(_identity(run, change).items()))
        seen[alike, run.seed] += 1  # a run that repeats another one's seed is no further draw
        found.setdefault((*alike, seen[alike, run.seed]), []).append(number)
    members = [[runs[number] for number in numbers] for numbers in found.values()]
    labels = _labels(members)
    looks = _looks(members)
    named = list(runs)
    for numbers, label, look in zip(found.values(), labels, looks, strict=True):
        for number in numbers:
            own = f"{label}, seed {runs[number].seed}" if len(numbers) > 1 else label
            named[number] = replace(runs[number], label=own, group=label, look=look)
    return named, [
        Group(label, look, [named[number] for number in numbers])
        for numbers, label, look in zip(found.values(), labels, looks, strict=True)
    ]


def _identity(run: Report, change: dict[str, str]) -> Settings:
    """The settings that a result depends on, without the seed."""
    return {k: _number(v) for k, v in run.config.items() if k != "seed" and change.get(k) not in (SAME_RESULT, OUTSIDE)}


def _number(text: str) -> str:
    """A number as it is written in any way: 0.001 and 1e-3 are one."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _labels(members: Sequence[Sequence[Report]]) -> list[str]:
    """Names, no two alike: the shortest that tell all groups apart."""
    first = [runs[0] for runs in members]
    for label in _candidates(first):
        labels = [label(run) for run in first]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{run.label} ({number})" for number, run in enumerate(first, start=1)]


def _candidates(first: Sequence[Report]) -> Iterator[Callable[[Report], str]]:
    yield lambda run: run.name
    yield lambda run: f"{run.name}, {run.dataset}"
    yield lambda run: ", ".join([run.name, *_own(run, first)])
    yield lambda run: ", ".join([run.name, run.dataset, *_own(run, first)])
    yield lambda run: run.label


def _own(run: Report, others: Sequence[Report]) -> list[str]:
    """Of the settings in which groups of this name differ the first three: ``dim 8``."""
    alike = [other for other in others if other.name == run.name]
    names = [name for name in run.config if len({other.config.get(name) for other in alike}) > 1 and name != "seed"]
    return [f"{name.split('.')[-1].replace('_', ' ')} {run.config[name]}" for name in names[:3]]


def _looks(members: Sequence[Sequence[Report]]) -> list[int]:
    """A method has its own look in every setting; two groups of one method in the same setting have different ones."""
    looks = [0] * len(members)
    for setting in dict.fromkeys(setting_of(runs[0]) for runs in members):
        numbers = [number for number, runs in enumerate(members) if setting_of(runs[0]) == setting]
        for number, look in zip(numbers, positions([members[number][0].name for number in numbers]), strict=True):
            looks[number] = look
    return looks
