"""What a dataclass of settings says of itself."""

from __future__ import annotations

import dataclasses

import pytest

from pfedmma.system.errors import UserError
from pfedmma.system.options import ANOTHER_RUN, GOES_ON, OUTSIDE, Described, described, flatten, nested, section, setting


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
