"""What a round and a whole run moved, as it stands in ``metrics.jsonl`` and ``summary.json``; see `pfedmma.records.rows`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from pfedmma.system.fields import Fields, without_nulls

Bookkeeping = dict[str, dict[str, int]]  # purpose -> collectives and payload_bytes of what is no exchange
WASTED, KEYS = OPTIONAL = ("wasted_bytes", "key_exchange_bytes_modelled")  # absent in the files where there is no such thing


@dataclass(frozen=True)
class RoundComm:
    """What a round moved, as `pfedmma.comm.ledger` counts it.

    ``wasted_bytes``: None where no upload can be lost. ``key_exchange_bytes_modelled``: what all participants together would send and
    receive for the keys of a secure sum, see `pfedmma.server.secure_sum.key_bytes`; None without one.
    """

    shared_parameters: int
    payload_bytes: int
    uplink_bytes: int
    downlink_bytes: int
    ring_bytes_per_rank: float
    collectives: int
    time_us: float
    bookkeeping: Bookkeeping = field(default_factory=dict)
    wasted_bytes: int | None = None
    key_exchange_bytes_modelled: int | None = None

    def to_json(self) -> dict[str, Any]:
        return without_nulls(dataclasses.asdict(self), OPTIONAL)

    @classmethod
    def from_fields(cls, fields: Fields) -> RoundComm:
        return cls(
            shared_parameters=fields.whole("shared_parameters"),
            payload_bytes=fields.whole("payload_bytes"),
            uplink_bytes=fields.whole("uplink_bytes"),
            downlink_bytes=fields.whole("downlink_bytes"),
            ring_bytes_per_rank=fields.number("ring_bytes_per_rank"),
            collectives=fields.whole("collectives"),
            time_us=fields.number("time_us"),
            bookkeeping=_bookkeeping(fields),
            wasted_bytes=_optional(fields, WASTED),
            key_exchange_bytes_modelled=_optional(fields, KEYS),
        )


@dataclass(frozen=True)
class RunComm:
    """What a whole run moved. Bandwidths are None where nobody knows them; the last two as in `RoundComm`."""

    payload_bytes: int
    uplink_bytes: int
    downlink_bytes: int
    ring_bytes_per_rank: float
    collectives: int
    time_us_p50: float
    time_us_p95: float
    algbw_gb_per_s: float | None
    busbw_gb_per_s: float | None
    bookkeeping: Bookkeeping = field(default_factory=dict)
    wasted_bytes: int | None = None
    key_exchange_bytes_modelled: int | None = None

    def to_json(self) -> dict[str, Any]:
        return without_nulls(dataclasses.asdict(self), OPTIONAL)

    @classmethod
    def from_fields(cls, fields: Fields) -> RunComm:
        return cls(
            payload_bytes=fields.whole("payload_bytes"),
            uplink_bytes=fields.whole("uplink_bytes"),
            downlink_bytes=fields.whole("downlink_bytes"),
            ring_bytes_per_rank=fields.number("ring_bytes_per_rank"),
            collectives=fields.whole("collectives"),
            time_us_p50=fields.number("time_us_p50"),
            time_us_p95=fields.number("time_us_p95"),
            algbw_gb_per_s=fields.score("algbw_gb_per_s"),
            busbw_gb_per_s=fields.score("busbw_gb_per_s"),
            bookkeeping=_bookkeeping(fields),
            wasted_bytes=_optional(fields, WASTED),
            key_exchange_bytes_modelled=_optional(fields, KEYS),
        )


def _bookkeeping(fields: Fields) -> Bookkeeping:
    if not fields.has("bookkeeping"):
        return {}
    purposes = fields.part("bookkeeping")
    parts = {purpose: purposes.part(purpose) for purpose in purposes.values}
    return {purpose: {name: part.whole(name) for name in ("collectives", "payload_bytes")} for purpose, part in parts.items()}


def _optional(fields: Fields, name: str) -> int | None:
    return fields.whole(name) if fields.has(name) else None
