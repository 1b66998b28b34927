"""Compare files: which methods, datasets, shots and seeds make up a comparison.

A compare file is YAML::

    config: ../demo.yaml             # optional: a config file that every run starts from; relative to the compare file
    settings: {data: {clients: 10}}  # optional: for every run, on top of it
    methods: [pfedmma, promptfl]     # names, or a mapping of labels to further settings
    datasets: [shapes]               # likewise; optional
    shots: [16]                      # optional
    seeds: [0, 1, 2]                 # optional

A label that does not set ``method.name`` (``data.name``) is itself the name.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from pfedmma.config import schema as configuration
from pfedmma.config.schema import Config
from pfedmma.methods.registry import entry_of
from pfedmma.system import options
from pfedmma.system.errors import UserError
from pfedmma.system.options import shown

KEYS = ("config", "settings", "methods", "datasets", "shots", "seeds")
ROOT = Path("runs") / "compare"
MOST_RUNS = 2000


@dataclass(frozen=True)
class Plan:
    """One run of a comparison. ``setting`` is what it shares with the runs that it is compared with; its seed stands apart.

    ``group``: the compare file, where there are several; runs of different files are not compared with each other.
    """

    method: str
    dataset: str
    config: Config
    group: str = ""

    @property
    def setting(self) -> str:
        shots = self.config.data.shots
        parts = [self.group, self.dataset, f"{shots} shot{'s' if shots > 1 else ''}" if shots else ""]
        return ", ".join(part for part in parts if part)

    @property
    def name(self) -> str:
        return Path(self.config.run_dir).name


def read(file: Path, overrides: Sequence[str] = (), out: Path | None = None, group: str = "") -> list[Plan]:
    """All runs that a compare file asks for, below ``out`` (by default ``runs/compare/<name of the file>``).

    Raises:
        UserError: an unreadable file, an unknown key, a setting that cannot be, two runs of one name.
    """
    tree = options.read_yaml(file)
    for key in tree:
        if key not in KEYS:
            raise UserError(f"{file}: unknown key '{shown(key)}'; a compare file has {', '.join(KEYS)}")
    start = tree.get("config") or ""
    if not isinstance(start, str):
        raise UserError(f"{file}: 'config' must be the path of a config file, not '{shown(start)}'")
    common = options.read_yaml(file.parent / start) if start else {}
    common = options.merged(common, _mapping(file, "settings", tree.get("settings") or {}))
    methods = _labels(file, "methods", tree.get("methods"), "method")
    data_name = _section(file, common, "data").get("name", "shapes")
    datasets = _labels(file, "datasets", tree.get("datasets") or [data_name], "data")
    plans: list[Plan] = []
    for dataset, data in datasets.items():
        usual = _section(file, options.merged(common, data), "data").get("shots")
        each_shots = _numbers(file, "shots", tree.get("shots"), usual)
        seeds = _numbers(file, "seeds", tree.get("seeds"), common.get("seed", 0))
        for shots, (method, own), seed in itertools.product(each_shots, methods.items(), seeds):
            if len(plans) == MOST_RUNS:
                raise UserError(f"{file} asks for more than {MOST_RUNS} runs; divide it into several files")
            parts = [dataset, f"{shots}-shot" if shots is not None else "", method, f"seed{seed}"]
            varied: dict[str, Any] = {"seed": seed, "run_dir": str((out or ROOT / file.stem) / _slug(parts))}
            if shots is not None:
                varied["data"] = {"shots": shots}
            whole = reduce(options.merged, (data, own, varied), common)
            plans.append(Plan(method, dataset, _resolved(file, whole, overrides), group))
    try:
        refuse_shared_folders(plans)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
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
        tree = _mapping(file, f"{key}.{label}", settings or {})
        if "name" not in _section(file, tree, section):
            tree = options.merged({section: {"name": str(label)}}, tree)
        labels[str(label)] = tree
    return labels


def _section(file: Path, tree: dict[str, Any], name: str) -> dict[str, Any]:
    return _mapping(file, name, tree.get(name) or {})


def _mapping(file: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{file}: '{key}' must be a mapping of settings, not '{shown(value)}'")
    return options.dotted(value)


def _numbers(file: Path, key: str, value: Any, otherwise: Any) -> list[Any]:
    value = [otherwise] if value is None else value
    if not isinstance(value, list) or not value or not all(v is None or (isinstance(v, int) and not isinstance(v, bool)) for v in value):
        raise UserError(f"{file}: '{key}' must be a list of whole numbers, not '{shown(value)}'")
    return value


def _slug(parts: Sequence[str]) -> str:
    """A folder name: letters, digits, and "-", "_", "." from the parts."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part).strip("-.") for part in parts if part)
