"""The communication ledger: four numbers that are never mixed.

1. ``payload_bytes``: what is handed to each collective, by purpose.
2. ``uplink_bytes`` / ``downlink_bytes``: what participants send and receive, the figure of the papers: exchanged tensors of each, as wide
   as the client is (down also what they read of other clients; where they pick rows, see `Engine.moved`); it does not depend on the
   number of ranks. ``wasted_bytes`` are those of the uplink whose upload was lost, where uploads can be.
3. ``ring_bytes_per_rank``: 2 (n-1)/n x payload, a model of what a ring all-reduce moves per rank.
4. time in microseconds, with algorithm and bus bandwidth as nccl-tests define them.

What clients send and receive outside of rounds is counted apart, by purpose, and in none of these.

One megabyte is 10^6 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

EXCHANGE = "exchange"  # the server round; everything else is bookkeeping


def ring_bytes(payload: float, ranks: int) -> float:
    """Bytes that each rank of a ring all-reduce sends (and receives) for ``payload`` bytes."""
    return 2.0 * (ranks - 1) / ranks * payload


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` (0..1) of ``values`` lie, interpolated; 0.0 of an empty list."""
    return float(np.quantile(values, share)) if values else 0.0


def bandwidths(payload: float, seconds: float, ranks: int) -> tuple[float, float]:
    """(algbw, busbw) in GB/s: payload / time, and that times 2 (n-1)/n for an all-reduce."""
    algorithm = payload / seconds / 1e9 if seconds > 0 else 0.0
    return algorithm, algorithm * 2.0 * (ranks - 1) / ranks


class Moved(NamedTuple):
    """Numbers that all participants of a round together have ``sent`` and ``received``; those of other clients that they read included.

    ``lost``: of those sent for nothing; None where none can be.
    """

    sent: int
    received: int
    lost: int | None = None


@dataclass
class Entry:
    """What the collectives of one purpose came to."""

    collectives: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0


@dataclass
class Ledger:
    """Every collective of a run, round by round and in total."""

    ranks: int
    current: dict[str, Entry] = field(default_factory=dict)
    total: dict[str, Entry] = field(default_factory=dict)
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    wasted_bytes: int | None = None
    ring_bytes_per_rank: float = 0.0
    exchange_us: list[float] = field(default_factory=list)
    apart: dict[str, dict[str, int]] = field(default_factory=dict)  # of this process: what happens when the rounds are over

    def enter(self, purpose: str, payload_bytes: int, seconds: float) -> None:
        """Record one collective."""
        for book in (self.current, self.total):
            entry = book.setdefault(purpose, Entry())
            entry.collectives += 1
            entry.payload_bytes += payload_bytes
            entry.seconds += seconds
        if purpose == EXCHANGE:
            self.exchange_us.append(seconds * 1e6)
            self.ring_bytes_per_rank += ring_bytes(payload_bytes, self.ranks)

    def open_round(self) -> None:
        """Begin a round's book; what was entered since the last round (start-up, checkpoints) stands in the totals alone."""
        self.current = {}

    def close_round(self, shared_parameters: int, moved: Moved, wire_bytes: int) -> dict[str, Any]:
        """The ``comm`` object of this round's metrics.

        ``shared_parameters``: that a client sends, the widest one; ``wire_bytes``: the size of one exchanged number (4 in fp32).
        """
        entry = self.current.get(EXCHANGE, Entry())
        up, down = moved.sent * wire_bytes, moved.received * wire_bytes
        self.uplink_bytes += up
        self.downlink_bytes += down
        wasted = {} if moved.lost is None else {"wasted_bytes": moved.lost * wire_bytes}
        if moved.lost is not None:
            self.wasted_bytes = (self.wasted_bytes or 0) + wasted["wasted_bytes"]
        return {
            "shared_parameters": shared_parameters,
            "payload_bytes": entry.payload_bytes,
            "uplink_bytes": up,
            "downlink_bytes": down,
            "ring_bytes_per_rank": ring_bytes(entry.payload_bytes, self.ranks),
            "collectives": entry.collectives,
            "time_us": entry.seconds * 1e6,
            "bookkeeping": {
                purpose: {"collectives": other.collectives, "payload_bytes": other.payload_bytes}
                for purpose, other in self.current.items()
                if purpose != EXCHANGE
            },
            **wasted,
        }

    def move(self, purpose: str, uplink_bytes: int, downlink_bytes: int) -> None:
        """Record what clients sent and received outside of rounds."""
        moved = self.apart.setdefault(purpose, {"uplink_bytes": 0, "downlink_bytes": 0})
        moved["uplink_bytes"] += uplink_bytes
        moved["downlink_bytes"] += downlink_bytes

    def totals(self) -> dict[str, Any]:
        """The ``comm`` object of the summary."""
        entry = self.total.get(EXCHANGE, Entry())
        middle = percentile(self.exchange_us, 0.5)
        mean_payload = entry.payload_bytes / max(entry.collectives, 1)
        algorithm, bus = bandwidths(mean_payload, middle / 1e6, self.ranks)
        return {
            "payload_bytes": entry.payload_bytes,
            "uplink_bytes": self.uplink_bytes,
            "downlink_bytes": self.downlink_bytes,
            "ring_bytes_per_rank": self.ring_bytes_per_rank,
            "collectives": entry.collectives,
            "time_us_p50": middle,
            "time_us_p95": percentile(self.exchange_us, 0.95),
            "algbw_gb_per_s": algorithm,
            "busbw_gb_per_s": bus,
            "bookkeeping": {
                purpose: {"collectives": other.collectives, "payload_bytes": other.payload_bytes}
                for purpose, other in self.total.items()
                if purpose != EXCHANGE
            },
            **self._wasted(),
        }

    def state(self) -> dict[str, object]:
        """What a resumed run needs to go on counting."""
        return {
            "total": {purpose: vars(entry) for purpose, entry in self.total.items()},
            "uplink_bytes": self.uplink_bytes,
            "downlink_bytes": self.downlink_bytes,
            "ring_bytes_per_rank": self.ring_bytes_per_rank,
            "exchange_us": self.exchange_us,
            **self._wasted(),
        }

    def restore(self, state: dict) -> None:
        self.total = {purpose: Entry(**entry) for purpose, entry in state["total"].items()}
        self.uplink_bytes, self.downlink_bytes = state["uplink_bytes"], state["downlink_bytes"]
        self.wasted_bytes = state.get("wasted_bytes")
        self.ring_bytes_per_rank = state["ring_bytes_per_rank"]
        self.exchange_us = list(state["exchange_us"])

    def _wasted(self) -> dict[str, int]:
        """The key of what was for nothing, where that can be."""
        return {} if self.wasted_bytes is None else {"wasted_bytes": self.wasted_bytes}
