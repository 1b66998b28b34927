"""Checks that config dataclasses share; each raises a `UserError` that begins with the field's name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pfedmma.system.errors import UserError


def at_least(name: str, value: float, least: float) -> None:
    if not (math.isfinite(value) and value >= least):
        raise UserError(f"{name}: must be at least {least:g}, not {value:g}")


def at_least_or_auto(name: str, value: str, least: float) -> None:
    """A number as it is written, or the word auto."""
    try:
        number = least if value == "auto" else float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        raise UserError(f"{name}: must be a number, at least {least:g}, or auto, not '{value}'")


def between(name: str, value: float, least: float, most: float) -> None:
    at_least(name, value, least)
    if value > most:
        raise UserError(f"{name}: must be at most {most:g}, not {value:g}")


def below_one(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise UserError(f"{name}: must be at least 0 and less than 1, not {value:g}")


def positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{name}: must be greater than 0, not {value:g}")


def share_or_default(name: str, value: float, default: float) -> None:
    """A number from 0 to 1, or ``default``, which stands for "as usual"."""
    if value != default and not 0.0 <= value <= 1.0:
        raise UserError(f"{name}: must be from 0 to 1, or {default:g} for the usual value, not {value:g}")


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    names = list(known)
    if value not in names:
        raise UserError(f"{name}: '{value}' is not known; choose one of {', '.join(names)}")


def some_once(name: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) < len(values):
        shown = f"[{', '.join(map(str, values))}]"
        raise UserError(f"{name}: must be a list of one value or more, each of them once, not {shown}")


def in_unit_interval(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:
        raise UserError(f"{name}: must be greater than 0 and at most 1, not {value:g}")
