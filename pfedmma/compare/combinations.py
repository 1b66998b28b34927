"""The combinations of a compare file's ``grid``: every product of the values of its settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfedmma.config.identity import change_of
from pfedmma.system.errors import UserError
from pfedmma.system.options import OUTSIDE, SAME_RESULT, shown

MOST_RUNS = 2000
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
