"""The combinations of a comparison's ``grid``, of the file and of the command line: every product of the values of its settings."""

from __future__ import annotations

import itertools
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedmma.config.identity import change_of
from pfedmma.config.schema import Config
from pfedmma.system import untrusted
from pfedmma.system.errors import UserError
from pfedmma.system.options import OUTSIDE, SAME_RESULT, Written, described, shown

MOST_RUNS = 2000
LIST, BRACKETS = re.compile(r"[^\s,\[\]{}]+(,[^\s,\[\]{}]+)+"), re.compile(r"\[.*\]")  # a text with spaces is one value
OWN_KEYS = {"seed": "seeds", "data.shots": "shots", "data.name": "datasets", "method.name": "methods"}


@dataclass(frozen=True)
class Combination:
    """A value for each setting of a grid, by dotted name; none where there is no grid."""

    values: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{name}={_text(value)}" for name, value in self.values.items())

    @property
    def words(self) -> list[str]:
        """For the name of a folder."""
        return [f"{name}-{_text(value)}" for name, value in self.values.items()]


def combinations(file: Path, grid: Any) -> tuple[Combination, ...]:
    """All combinations, the last setting varying first; an empty one where there is no grid.

    Raises:
        UserError: no mapping of settings to lists, a setting that cannot be varied so, a value given twice, too many combinations.
    """
    if grid is None:
        return (Combination({}),)
    if not isinstance(grid, dict) or not grid:
        raise UserError(f"{file}: 'grid' must be a mapping of settings to lists, such as {{method.dim: [8, 32]}}, not '{shown(grid)}'")
    for name, values in grid.items():
        _require_values(file, str(name), values)
    if math.prod(map(len, grid.values())) > MOST_RUNS:
        raise UserError(f"{file}: 'grid' has more than {MOST_RUNS} combinations; divide it into several files")
    return tuple(Combination(dict(zip(map(str, grid), values, strict=True))) for values in itertools.product(*grid.values()))


def several(overrides: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Of settings on the command line those with several values, ``method.dim=8,32`` or ``method.dim=[8, 32]``, by name; and the others.

    A setting whose value is itself a list has one value, and so has one that no result depends on.
    """
    kinds = {item.name: item.type for item in described(Config)}
    varied: dict[str, list[Any]] = {}
    others = []
    for item in overrides:
        name, _, text = (part.strip() for part in item.partition("="))
        single = typing.get_origin(kinds.get(name)) is tuple or change_of().get(name) in (OUTSIDE, SAME_RESULT)
        if single or not (LIST.fullmatch(text) or BRACKETS.fullmatch(text)):
            others.append(item)
        else:
            varied[name] = _listed(item, text)
    return varied, others


def _listed(item: str, text: str) -> list[Any]:
    try:
        return untrusted.parse_yaml(text if BRACKETS.fullmatch(text) else f"[{text}]", Written)
    except ValueError:
        raise UserError(f"'{shown(item)}' is no list of values; write for example method.dim=8,32") from None


def extended(file: Path, tree: Mapping[str, Any], varied: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The keys of a compare file with what `several` gives of the command line.

    Seeds, shots, methods and data sets take the place of the file's; a method or data set that is a label of the file keeps its settings.

    Raises:
        UserError: the file's grid varies the same setting.
    """
    tree, grid = dict(tree), dict(tree.get("grid") or {}) if isinstance(tree.get("grid"), (dict, type(None))) else {}
    for name, values in varied.items():
        key = OWN_KEYS.get(name)
        if key in ("seeds", "shots"):
            tree[key] = [untrusted.parse_yaml(str(value)) for value in values]
        elif key:
            labels = tree.get(key)
            tree[key] = {str(value): labels.get(str(value)) if isinstance(labels, dict) else None for value in values}
        elif name in grid:
            raise UserError(f"{file}: '{name}' is set by 'grid' and by the command line; leave it out of one of them")
        else:
            tree["grid"] = grid = grid | {name: values}
    return tree


def _require_values(file: Path, name: str, values: Any) -> None:
    start = f"{file}: grid.{shown(name)}"
    if name in OWN_KEYS:
        raise UserError(f"{start}: a compare file has a key for it; write '{OWN_KEYS[name]}'")
    if change_of().get(name) in (OUTSIDE, SAME_RESULT):
        raise UserError(f"{start}: no result depends on it; a grid varies what makes another run")
    if isinstance(values, dict):
        raise UserError(f"{start} must be a list of values, not '{shown(values)}'; write the whole name, such as method.dim: [8, 32]")
    if not isinstance(values, list) or not values or any(value is None or isinstance(value, dict) for value in values):
        raise UserError(f"{start} must be a list of values, not '{shown(values)}'")
    if (twice := _twice(values)) is not None:
        raise UserError(f"{start} has {shown(twice)} twice")


def _twice(values: Sequence[Any]) -> Any:
    """A value that stands among earlier ones, also where it is written in another way (0.001 and 1e-3); None if all differ."""
    seen: set[Any] = set()
    for value in values:
        key = _key(value)
        if key in seen:
            return value
        seen.add(key)
    return None


def _key(value: Any) -> Any:
    try:
        return float(value) if not isinstance(value, (bool, list)) else _text(value)
    except ValueError:
        return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
