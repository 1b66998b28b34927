"""What a dataclass of settings says of itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pfedmma.system.errors import UserError
from pfedmma.system.options import ANOTHER_RUN, GOES_ON, OUTSIDE, Described, Open, described, flatten, nested, section, setting


@dataclasses.dataclass(frozen=True)
class Empty:
    """A section without settings."""


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = setting(0.5, "how fast", GOES_ON)
    plain: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    first: str = setting("a", "which")
    inner: Inner = dataclasses.field(default_factory=Inner)
    last: tuple[str, ...] = setting((), "who", OUTSIDE)
    empty: Empty = dataclasses.field(default_factory=Empty)


def test_described_in_order_of_declaration() -> None:
    assert described(Outer, "top.") == [
        Described("top.first", str, "a", "which", ANOTHER_RUN),
        Described("top.inner.rate", float, 0.5, "how fast", GOES_ON),
        Described("top.inner.plain", int, 3, "", ANOTHER_RUN),
        Described("top.last", tuple[str, ...], (), "who", OUTSIDE),
    ]


def test_flat_and_nested_values() -> None:
    config = Outer("b", Inner(2.0), ("x", "y"))
    assert flatten(config) == {"first": "b", "inner.rate": 2.0, "inner.plain": 3, "last": ("x", "y")}
    assert nested(config) == {"first": "b", "inner": {"rate": 2.0, "plain": 3}, "last": ["x", "y"], "empty": {}}
    assert section(Outer, nested(config)) == config


def test_a_section_given_as_a_value() -> None:
    with pytest.raises(UserError, match=r"'inner' is a section; set one of its keys, for example inner\.rate"):
        section(Outer, {"inner": 3})
    with pytest.raises(UserError, match="'empty' is a section; it has no keys"):
        section(Outer, {"empty": 3})


@dataclasses.dataclass(frozen=True)
class Chosen(Open):
    """A section whose sub-sections come from elsewhere."""

    name: str = setting("inner", "which section")
    own: Any = None

    @classmethod
    def sections(cls) -> dict[str, type]:
        return {"inner": Inner, "empty": Empty}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Chosen:
        name = values.get("name", "inner")
        return cls(name, values.get(name, cls.sections()[name]()))

    def section_in_use(self) -> str:
        return self.name


def test_sections_that_are_added_from_elsewhere() -> None:
    assert [item.name for item in described(Chosen)] == ["name", "inner.rate", "inner.plain"]
    config = section(Chosen, {"inner": {"rate": 2.0}})
    assert flatten(config) == {"name": "inner", "inner.rate": 2.0, "inner.plain": 3}
    assert section(Chosen, nested(config)) == config
    other = section(Chosen, {"name": "empty", "inner": {"rate": 2.0}})
    assert (other.own, flatten(other), nested(other)) == (Empty(), {"name": "empty"}, {"name": "empty", "empty": {}})
    with pytest.raises(UserError, match=r"unknown setting 'inner\.rat'; did you mean 'inner\.rate'"):
        section(Chosen, {"name": "empty", "inner": {"rat": 1}})
