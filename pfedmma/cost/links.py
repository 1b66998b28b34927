"""Links between a client and the server: ``home=10M/50M,lan=1G``, bits a second up and down."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pfedmma.system.errors import UserError

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
DEFAULT = "home=10M/50M,lan=1G,rack=100G"
_RATE = r"(\d+(?:\.\d+)?)([kMG]?)"
_LINK = re.compile(rf"([A-Za-z][\w-]*)={_RATE}(?:/{_RATE})?", re.ASCII)


@dataclass(frozen=True)
class Link:
    """``up`` and ``down``: bits a second of one client, or of one rank. Nobody else uses it, and nothing else takes time."""

    name: str
    up: float
    down: float

    def seconds(self, up_bytes: float, down_bytes: float) -> float:
        """To send, and then to receive."""
        return 8 * (up_bytes / self.up + down_bytes / self.down)


def links(text: str) -> tuple[Link, ...]:
    """The links that ``text`` names, in its order.

    Raises:
        UserError: it does not follow the syntax, a rate is 0, or a name comes twice.
    """
    found: dict[str, Link] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        link = _link(part)
        if link.name in found:
            raise UserError(f"--links: '{link.name}' is there twice; give each link a name of its own")
        found[link.name] = link
    return tuple(found.values())


def _link(text: str) -> Link:
    match = _LINK.fullmatch(text)
    if match is None:
        raise UserError(f"--links: '{text[:60]}' is no link; write NAME=RATE or NAME=UP/DOWN in bits a second with k, M or G, as {DEFAULT}")
    name, number, unit, down, down_unit = match.groups()
    up = float(number) * UNITS[unit]
    link = Link(name, up, up if down is None else float(down) * UNITS[down_unit])
    if min(link.up, link.down) == 0:
        raise UserError(f"--links: '{text[:60]}' has no rate; a link carries more than 0 bits a second")
    return link
