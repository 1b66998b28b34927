"""Links: their syntax, and the seconds that bytes take over them."""

from __future__ import annotations

import pytest

from pfedmma.cost.links import DEFAULT, Link, links
from pfedmma.system.errors import UserError


def test_rates_are_bits_a_second_in_decimal_units() -> None:
    assert links("home=10M/50M, lan=1G,slow=9.6k,bare=300") == (
        Link("home", 10e6, 50e6),
        Link("lan", 1e9, 1e9),
        Link("slow", 9600.0, 9600.0),
        Link("bare", 300.0, 300.0),
    )
    assert links("") == () and [link.name for link in links(DEFAULT)] == ["home", "lan", "rack"]


def test_seconds_by_hand() -> None:
    """10^6 bytes are 8 million bits: 0.8 s at 10 Mbit/s, and 0.16 s at 50."""
    assert Link("home", 10e6, 50e6).seconds(1e6, 1e6) == pytest.approx(0.96)
    assert Link("home", 10e6, 50e6).seconds(0, 1e6) == pytest.approx(0.16)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("home", "'home' is no link; write NAME=RATE"),
        ("home=10m", "'home=10m' is no link"),
        ("home=-1M", "is no link"),
        ("=10M", "is no link"),
        ("home=0M", "has no rate"),
        ("home=1M/0", "has no rate"),
        ("a=1M,a=2M", "'a' is there twice"),
    ],
)
def test_what_is_no_link_is_said(text: str, words: str) -> None:
    with pytest.raises(UserError, match=f"^--links: .*{words}"):
        links(text)
