"""Compare files: which methods, datasets, shots, settings and seeds make up a comparison.

A compare file is YAML::

    config: ../demo.yaml             # optional: where every run starts from; relative to this file, or one of the package by name: demo
    settings: {data: {clients: 10}}  # optional: for every run, on top of it
    methods: [pfedmma, promptfl]     # names, or a mapping of labels to further settings
    datasets: [shapes]               # likewise; optional
    shots: [16]                      # optional
    grid: {method.dim: [8, 32]}      # optional: dotted settings and their values, all combinations
    select: val                      # optional: choose among the combinations, for each method, instead of comparing in each
    select_seeds: [0, 1]             # optional: the seeds with which candidates run; without it, those of the comparison
    seeds: [0, 1, 2]                 # optional
    baseline: local                  # optional: the method that all others are tested against; without it, each against the best other

A label that does not set ``method.name`` (``data.name``) is itself the name. Its settings may name a ``config`` file of its own, from
which they start. Later layers take precedence: config, settings, dataset, method, what is varied, the command line. There a setting with
several values, method.dim=8,32 or seed=0,1,2, is one of the grid, or takes the place of the file's seeds, shots, methods or datasets.

Without ``select`` a combination of the grid is a part of the setting in which methods are compared. With ``select: val`` the combinations
are a method's candidates: they run on the validation split, and the best of each method runs on the test split
(`pfedmma.compare.selection`).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from pfedmma.compare.combinations import MOST_RUNS, OWN_KEYS, Combination, combinations, extended, several
from pfedmma.config import schema as configuration
from pfedmma.config import shipped
from pfedmma.config.schema import Config
from pfedmma.methods.registry import entry_of
from pfedmma.system import options, untrusted
from pfedmma.system.errors import UserError
from pfedmma.system.options import Written, shown

KEYS = ("config", "settings", "methods", "datasets", "shots", "grid", "select", "select_seeds", "seeds", "baseline")
ROOT = Path("runs") / "compare"
CANDIDATES = "candidates"  # the folder of runs on the validation split, below that of the comparison


@dataclass(frozen=True)
class Plan:
    """One run of a comparison. ``setting`` is what it shares with the runs that it is compared with; its seed stands apart.

    ``group``: the compare file, where there are several; runs of different files are not compared with each other. ``combination``: of
    the grid's values. ``candidates``: among how many combinations one is chosen for the method, 0 where nothing is chosen.
    ``baseline``: the method that the others are tested against. ``grid``: the names of the settings in its combination. ``test_seeds``:
    of a candidate, the seeds of what is chosen.
    """

    method: str
    dataset: str
    config: Config
    group: str = ""
    combination: str = ""
    candidates: int = 0
    baseline: str = ""
    grid: tuple[str, ...] = ()
    test_seeds: tuple[int, ...] = ()

    @property
    def setting(self) -> str:
        return ", ".join(part for part in (self.group, self.dataset, self.varied) if part)

    @property
    def varied(self) -> str:
        """What of the setting is neither data set nor file: shots, and the combination where methods are compared in each."""
        shots = self.config.data.shots
        parts = [f"{shots} shot{'s' if shots > 1 else ''}" if shots else "", "" if self.candidates else self.combination]
        return ", ".join(part for part in parts if part)

    @property
    def is_candidate(self) -> bool:
        """Whether the run is there to be chosen from: on the validation split."""
        return self.candidates > 0 and self.config.evaluation.split == "val"

    @property
    def name(self) -> str:
        return Path(self.config.run_dir).name

    def on_test(self, seed: int) -> Plan:
        """The run of the same settings with a seed on the test split, in a folder of its own."""
        folder = Path(self.config.run_dir).parent.parent / f"{self.name.removesuffix(_seeded(self.config.seed))}{_seeded(seed)}"
        evaluation = dataclasses.replace(self.config.evaluation, split="test")
        tested = dataclasses.replace(self.config, evaluation=evaluation, seed=seed, run_dir=str(folder))
        return dataclasses.replace(self, config=tested, test_seeds=())


@dataclass(frozen=True)
class Asked:
    """What a compare file asks for; ``methods`` and ``datasets``: label -> settings, ``common``: the settings below them.

    ``overrides``: settings of the command line, above all others.
    """

    file: Path
    common: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    datasets: dict[str, dict[str, Any]]
    shots: list[Any] | None
    seeds: list[int]
    grid: tuple[Combination, ...]
    select: bool
    select_seeds: list[int]
    baseline: str
    overrides: tuple[str, ...]

    @classmethod
    def from_file(cls, file: Path, overrides: Sequence[str]) -> Asked:
        tree = options.read_yaml(file) | _as_written(file)
        for key in tree:
            if key not in KEYS:
                raise UserError(f"{file}: unknown key '{shown(key)}'; a compare file has {', '.join(KEYS)}")
        varied, overrides = several(overrides)
        tree = extended(file, tree, varied)
        common = _started(file, "settings", {"config": tree.get("config")} | _mapping(file, "settings", tree.get("settings") or {}))
        data_name = _section(file, common, "data").get("name", "shapes")
        seeds = _numbers(file, "seeds", [_seed(common)] if tree.get("seeds") is None else tree["seeds"])
        asked = cls(
            file,
            common,
            methods=_labels(file, "methods", tree.get("methods"), "method"),
            datasets=_labels(file, "datasets", tree.get("datasets") or [data_name], "data"),
            shots=None if tree.get("shots") is None else _numbers(file, "shots", tree["shots"]),
            seeds=seeds,
            grid=combinations(file, tree.get("grid")),
            select=_select(file, tree),
            select_seeds=seeds if tree.get("select_seeds") is None else _numbers(file, "select_seeds", tree["select_seeds"]),
            baseline=_baseline(file, tree),
            overrides=tuple(overrides),
        )
        asked.refuse_what_is_set_twice()
        return asked

    @property
    def given(self) -> dict[str, str]:
        """What the command line sets, by dotted name."""
        return {name.strip(): value.strip() for name, _, value in (item.partition("=") for item in self.overrides)}

    def refuse_what_is_set_twice(self) -> None:
        """Raise a `UserError` if something else sets what the grid varies, or ``select`` sets, and one of the two would not count."""
        above = {f"methods.{label}": tree for label, tree in self.methods.items()}
        above |= {f"datasets.{label}": tree for label, tree in self.datasets.items()}
        above |= {"the command line": options.dotted(self.given)}
        for name, (place, tree) in itertools.product(self.grid[0].values, above.items()):
            if _has(tree, name):
                raise UserError(f"{self.file}: '{name}' is set by 'grid' and by {place}; leave it out of one of them")
        for place, tree in (above | {"settings and config": self.common, "grid": options.dotted(dict(self.grid[0].values))}).items():
            if self.select and _has(tree, "evaluation.split"):
                raise UserError(f"{self.file}: 'select' sets evaluation.split (val, then test for what is chosen); leave it out of {place}")
        if self.select and "seed" in self.given:
            raise UserError(f"{self.file}: 'select' runs with seeds of its own; write seed=[{self.given['seed']}] in place of the file's")

    def refuse_one_under_two_names(self, plans: Sequence[Plan]) -> None:
        """Raise a `UserError` if two runs differ in their names alone: they would count as two methods, or as two seeds of one."""
        named: dict[str, str] = {}
        for plan in plans:
            run = repr(dataclasses.replace(plan.config, run_dir=""))
            if run in named:
                both = f"{named[run]} and {plan.name} would be one run under two names"
                raise UserError(f"{self.file}: {both}; {self._what_makes_them_one()}")
            named[run] = plan.name

    def _what_makes_them_one(self) -> str:
        """And what to write instead."""
        for name, key in OWN_KEYS.items():
            if name in self.given and len(getattr(self, key) or ()) > 1:
                return f"write {name}=[{self.given[name]}] to have it in place of the file's {key}"
        set_for_both = f", or what the command line sets for both ({' '.join(self.overrides)})" if self.overrides else ""
        return f"leave out one of them{set_for_both}"

    def runs(self) -> Iterator[tuple[str, str, int | None, int, Combination, int]]:
        """(dataset, method, shots, seed, combination, number of candidates) of each run."""
        for dataset, data in self.datasets.items():
            usual = _section(self.file, options.merged(self.common, data), "data").get("shots")
            for shots, method in itertools.product(self.shots or [usual], self.methods):
                chosen = self.select and self.trains(data, method)
                tried = self.grid if chosen or not self.select else (Combination({}),)
                for combination, seed in itertools.product(tried, self.select_seeds if chosen else self.seeds):
                    yield dataset, method, shots, seed, combination, len(self.grid) if chosen else 0

    def trains(self, data: dict[str, Any], method: str) -> bool:
        """Whether the method of a label trains anything: nothing can be chosen for one that does not."""
        config = _resolved(self.file, options.merged(options.merged(self.common, data), self.methods[method]), self.overrides)
        return entry_of(config.method.name).trains


def read(file: Path, overrides: Sequence[str] = (), out: Path | None = None, group: str = "") -> list[Plan]:
    """All runs that a compare file asks for, below ``out`` (by default ``runs/compare/<name of the file>``).

    With ``select`` these are the candidates, and what needs no choice; the chosen ones follow from their results.

    Raises:
        UserError: an unreadable file, an unknown key, a setting that cannot be, two runs of one name.
    """
    asked, out = Asked.from_file(file, overrides), out or ROOT / file.stem
    plans: list[Plan] = []
    for dataset, method, shots, seed, combination, candidates in asked.runs():
        if len(plans) == MOST_RUNS:
            raise UserError(f"{file} asks for more than {MOST_RUNS} runs; divide it into several files")
        slug = _slug([dataset, f"{shots}-shot" if shots is not None else "", method, *combination.words, _seeded(seed)])
        varied: dict[str, Any] = {"seed": seed, "run_dir": str(out / CANDIDATES / slug if candidates else out / slug)}
        if shots is not None:
            varied["data"] = {"shots": shots}
        if candidates:
            varied["evaluation"] = {"split": "val"}
        layers = (asked.datasets[dataset], asked.methods[method], options.dotted(dict(combination.values)), varied)
        config = _resolved(file, reduce(options.merged, layers, asked.common), asked.overrides)
        if candidates and config.evaluation.every == 0:
            raise UserError(f"{file}: select: val chooses by the HM of evaluations; evaluation.every=0 has none")
        tested = tuple(asked.seeds) if candidates else ()
        plans.append(Plan(method, dataset, config, group, str(combination), candidates, asked.baseline, tuple(combination.values), tested))
    try:
        refuse_shared_folders(plans)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    asked.refuse_one_under_two_names(plans)
    return plans


def refuse_shared_folders(plans: Sequence[Plan]) -> None:
    """Raise a `UserError` if two of the runs, which may come from several files, would share a folder."""
    folders = Counter(plan.config.run_dir for plan in plans)
    twice = next((plan.name for plan in plans if folders[plan.config.run_dir] > 1), None)
    if twice is not None:
        raise UserError(f"two runs would share the folder {twice}; give their labels other names")


def _resolved(file: Path, tree: dict[str, Any], overrides: Sequence[str]) -> Config:
    try:
        config = configuration.resolve(tree, overrides)
        if not entry_of(config.method.name).trains:  # nothing is trained, so one round says it all
            config = configuration.resolve(tree, [*overrides, "federation.rounds=1"])
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return config


def _labels(file: Path, key: str, value: Any, section: str) -> dict[str, dict[str, Any]]:
    """{label: settings} of the methods or datasets."""
    if isinstance(value, list):
        value = {str(name): None for name in value}
    if not isinstance(value, dict) or not value:
        raise UserError(f"{file}: '{key}' must be a list of names, or a mapping of labels to settings")
    labels = {}
    for label, settings in value.items():
        tree = _started(file, f"{key}.{label}", _mapping(file, f"{key}.{label}", settings or {}))
        if "name" not in _section(file, tree, section):
            tree = options.merged({section: {"name": str(label)}}, tree)
        labels[str(label)] = tree
    return labels


def _started(file: Path, key: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Settings on top of those of the file that their ``config`` names, where it names one."""
    tree = dict(tree)
    start = tree.pop("config", None) or ""
    if not isinstance(start, str):
        where = "config" if key == "settings" else f"{key}.config"
        raise UserError(f"{file}: '{where}' must be the path of a config file, not '{shown(start)}'")
    if not start:
        return tree
    try:
        path = shipped.located(start, beside=file.parent)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return options.merged(options.read_settings(path), tree)


def _as_written(file: Path) -> dict[str, Any]:
    """The parts of a compare file that hold settings, with values as they are written: ``off`` is a word where a setting has words."""

    def value(text: str) -> Written | None:
        written = Written(text)
        return None if written.nothing else written

    tree = options.read_yaml(file, value)
    return {key: tree[key] for key in ("settings", "methods", "datasets", "grid") if key in tree}


def _seed(common: Mapping[str, Any]) -> Any:
    """That of the settings, which may be as it is written."""
    seed = common.get("seed", 0)
    return untrusted.parse_yaml(seed) if isinstance(seed, Written) else seed


def _section(file: Path, tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    return _mapping(file, name, tree.get(name) or {})


def _mapping(file: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{file}: '{key}' must be a mapping of settings, not '{shown(value)}'")
    return options.dotted(value)


def _has(tree: Any, name: str) -> bool:
    """Whether nested settings set a dotted name."""
    for part in name.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def _select(file: Path, tree: Mapping[str, Any]) -> bool:
    value = tree.get("select")
    if value not in (None, "val"):
        raise UserError(f"{file}: 'select' must be val (choose on the validation split) or left out, not '{shown(value)}'")
    if value and not tree.get("grid"):
        raise UserError(
            f"{file}: 'select' chooses among the combinations of a grid; add one, such as grid: {{optimizer.lr: [0.001, 0.01]}}"
        )
    if not value and tree.get("select_seeds") is not None:
        raise UserError(f"{file}: 'select_seeds' are the seeds of candidates, which 'select: val' makes; add it, or leave them out")
    return bool(value)


def _baseline(file: Path, tree: Mapping[str, Any]) -> str:
    value, methods = tree.get("baseline"), list(map(str, tree.get("methods") or ()))
    if value is None:
        return ""
    if str(value) not in methods:
        raise UserError(f"{file}: 'baseline' must be one of the methods ({', '.join(methods)}), not '{shown(value)}'")
    return str(value)


def _numbers(file: Path, key: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        raise UserError(f"{file}: '{key}' must be a list of whole numbers, not '{shown(value)}'")
    return value


def _seeded(seed: int) -> str:
    """The last part of a run's name."""
    return f"seed{seed}"


def _slug(parts: Sequence[str]) -> str:
    """A folder name: letters, digits, and "-", "_", "." from the parts."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-.") for part in parts if part)
