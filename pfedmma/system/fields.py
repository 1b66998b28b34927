"""Reading JSON that may be anything: each value is checked where it is taken, and one sentence says what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pfedmma.system import untrusted
from pfedmma.system.errors import UserError


class Fields:
    """An object ({...}) of a file; ``where`` says which, for example "summary.json: per_client[3]".

    Every method that takes a key raises a `UserError` if the key is absent or holds something of another kind.
    """

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise UserError(f"{where} must be an object, not {_kind(value)}")
        self.values, self.where = value, where

    @classmethod
    def from_file(cls, path: Path) -> Fields:
        """The object that a JSON file holds."""
        try:
            value = untrusted.read_json(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from None
        return cls(value, str(path))

    def has(self, key: str) -> bool:
        """Whether there is more than null."""
        return self.values.get(key) is not None

    def number(self, key: str) -> float:
        """A finite number."""
        value = finite(self._take(key))
        if value is None:
            raise self._wrong(key, "a number")
        return value

    def whole(self, key: str) -> int:
        """A whole number."""
        value = self._take(key)
        if type(value) is not int:
            raise self._wrong(key, "a whole number")
        return value

    def score(self, key: str) -> float | None:
        """A number, or None for null and what is not finite."""
        value = self._take(key)
        if value is not None and not _is_number(value):
            raise self._wrong(key, "a number or null")
        return finite(value)

    def text(self, key: str) -> str:
        value = self._take(key)
        if not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value

    def text_or_none(self, key: str) -> str | None:
        return None if self._take(key) is None else self.text(key)

    def part(self, key: str) -> Fields:
        """The object below a key."""
        return Fields(self._take(key), f"{self.where}: {key}")

    def part_or_none(self, key: str) -> Fields | None:
        """The object below a key, or None for null."""
        return None if self._take(key) is None else self.part(key)

    def parts(self, key: str) -> list[Fields]:
        """A list of objects."""
        return [Fields(value, f"{self.where}: {key}[{i}]") for i, value in enumerate(self._list(key))]

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(key, "a list of texts")
        return tuple(values)

    def numbers(self, key: str, alone: bool = False) -> list[float]:
        """A list of finite numbers; with ``alone`` also a number that stands for a list of one."""
        values = [finite(value) for value in ([self._take(key)] if alone and not isinstance(self._take(key), list) else self._list(key))]
        if None in values:
            raise self._wrong(key, "a list of numbers")
        return [value for value in values if value is not None]

    def wholes(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        values = self._list(key)
        if not all(type(value) is int for value in values):
            raise self._wrong(key, "a list of whole numbers")
        return tuple(values)

    def scores(self) -> dict[str, float | None]:
        """Every number of the object, and None for each null; what else it holds is left out."""
        return {key: finite(value) for key, value in self.values.items() if value is None or _is_number(value)}

    def scores_in(self, key: str) -> tuple[float | None, ...]:
        """A list of numbers, with None for each null and what is not finite."""
        values = self._list(key)
        if not all(value is None or _is_number(value) for value in values):
            raise self._wrong(key, "a list of numbers or nulls")
        return tuple(map(finite, values))

    def _list(self, key: str) -> list[Any]:
        value = self._take(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def _take(self, key: str) -> Any:
        if key not in self.values:
            raise UserError(f"{self.where} has no '{key}'; a file as the program that makes it leaves it would be right")
        return self.values[key]

    def _wrong(self, key: str, wanted: str) -> UserError:
        return UserError(f"{self.where}: {key} must be {wanted}, not {_kind(self.values[key])}")


def without_nulls(values: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """``values`` as they are written where some ``keys`` stand only if they say something."""
    return {name: value for name, value in values.items() if name not in keys or value is not None}


def finite(value: Any) -> float | None:
    """The number, or None where there is none or it is not finite."""
    if not _is_number(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def known_sum(values: Iterable[Any]) -> Any:
    """The sum of those that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _is_number(value: Any) -> bool:
    return type(value) is float or type(value) is int  # bool is none


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value)) or f"the number {value}"
