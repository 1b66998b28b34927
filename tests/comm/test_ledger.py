"""The communication ledger, against numbers worked out by hand."""

from __future__ import annotations

import json

import pytest

from pfedmma.comm.ledger import EXCHANGE, Ledger, Moved, bandwidths, percentile, ring_bytes


@pytest.mark.parametrize(
    ("payload", "ranks", "expected"),
    [
        (33_792, 1, 0.0),  # nobody to send to
        (33_792, 2, 33_792.0),  # 2 * 1/2
        (33_792, 4, 50_688.0),  # 2 * 3/4
        (33_792, 8, 59_136.0),  # 2 * 7/8
        (0, 8, 0.0),
    ],
)
def test_ring_model(payload: float, ranks: int, expected: float) -> None:
    assert ring_bytes(payload, ranks) == expected


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, 0.0),
        ([7.0], 0.95, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),  # the order of the values does not matter
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.5),
        ([1.0, 2.0, 3.0, 4.0], 0.0, 1.0),
        ([1.0, 2.0, 3.0, 4.0], 1.0, 4.0),
        ([0.0, 100.0], 0.95, 95.0),
        ([float(v) for v in range(1, 22)], 0.95, 20.0),  # place 0.95 * 20 = 19, counted from 0
        ([10.0, 20.0, 30.0], 0.1, 12.0),  # place 0.2: a fifth of the way from 10 to 20
    ],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    before = list(values)
    assert percentile(values, share) == pytest.approx(expected)
    assert values == before


@pytest.mark.parametrize(
    ("ranks", "bus"),
    [(1, 0.0), (2, 4.0), (4, 6.0), (8, 7.0)],  # nccl-tests: busbw = algbw * 2 (n-1)/n for an all-reduce
)
def test_bandwidths(ranks: int, bus: float) -> None:
    assert bandwidths(2e9, 0.5, ranks) == pytest.approx((4.0, bus))  # 2 GB in half a second are 4 GB/s


def test_bandwidth_of_no_time_is_zero() -> None:
    assert bandwidths(1000, 0.0, 4) == (0.0, 0.0)


def test_a_round() -> None:
    ledger = Ledger(ranks=4)
    ledger.enter("metrics", 8, 0.001)
    ledger.enter(EXCHANGE, 33_792, 0.002)
    comm = ledger.close_round(8_448, Moved(84_480, 84_480), 4)
    assert comm == {
        "shared_parameters": 8_448,
        "payload_bytes": 33_792,
        "uplink_bytes": 337_920,  # ten clients send 33,792 bytes each, whatever the number of ranks
        "downlink_bytes": 337_920,
        "ring_bytes_per_rank": 50_688.0,
        "collectives": 1,
        "time_us": pytest.approx(2_000.0),
        "bookkeeping": {"metrics": {"collectives": 1, "payload_bytes": 8}},
    }


def test_client_bytes_do_not_depend_on_the_ranks() -> None:
    rows = [Ledger(ranks).close_round(8_448, Moved(25_344, 25_344), 2) for ranks in (1, 2, 8)]
    assert {(row["uplink_bytes"], row["downlink_bytes"]) for row in rows} == {(3 * 8_448 * 2, 3 * 8_448 * 2)}


def test_a_round_without_exchange() -> None:
    ledger = Ledger(ranks=2)
    ledger.enter("metrics", 8, 0.5)
    comm = ledger.close_round(0, Moved(0, 0), 4)
    numbers = ("payload_bytes", "uplink_bytes", "downlink_bytes", "ring_bytes_per_rank", "collectives", "time_us")
    assert [comm[name] for name in numbers] == [0] * 6


def test_rounds_are_counted_apart_and_totals_together() -> None:
    ledger = Ledger(ranks=2)
    for microseconds, participants in ((100, 3), (300, 1), (200, 2)):
        ledger.enter("checkpoint", 4, 1.0)  # between two rounds: in the totals alone
        ledger.open_round()
        ledger.enter("metrics", 8, 1.0)
        ledger.enter(EXCHANGE, 400, microseconds / 1e6)
        row = ledger.close_round(100, Moved(participants * 100, participants * 100), 4)
        assert (row["payload_bytes"], row["collectives"]) == (400, 1)
        assert row["time_us"] == pytest.approx(microseconds)
        assert row["uplink_bytes"] == participants * 400
        assert row["bookkeeping"] == {"metrics": {"collectives": 1, "payload_bytes": 8}}
    totals = ledger.totals()
    assert totals["payload_bytes"] == 1_200
    assert totals["collectives"] == 3
    assert totals["uplink_bytes"] == totals["downlink_bytes"] == 6 * 400
    assert totals["ring_bytes_per_rank"] == 1_200.0  # 2 * 1/2 * 1200
    assert totals["time_us_p50"] == pytest.approx(200.0)
    assert totals["time_us_p95"] == pytest.approx(290.0)  # place 1.9: nine tenths of the way from 200 to 300
    assert totals["algbw_gb_per_s"] == pytest.approx(400 / 200e-6 / 1e9)  # the usual payload in the median time
    assert totals["busbw_gb_per_s"] == pytest.approx(400 / 200e-6 / 1e9)  # 2 * 1/2 of it
    assert totals["bookkeeping"] == {
        "checkpoint": {"collectives": 3, "payload_bytes": 12},
        "metrics": {"collectives": 3, "payload_bytes": 24},
    }


def test_an_empty_ledger() -> None:
    totals = Ledger(ranks=8).totals()
    assert totals.pop("bookkeeping") == {}
    assert set(totals.values()) == {0}


def test_restore_goes_on_counting() -> None:
    def first(ledger: Ledger) -> None:
        ledger.open_round()
        ledger.enter("metrics", 8, 0.25)
        ledger.enter(EXCHANGE, 400, 100e-6)
        ledger.close_round(100, Moved(300, 300), 4)

    def second(ledger: Ledger) -> None:
        ledger.open_round()
        ledger.enter(EXCHANGE, 400, 300e-6)
        ledger.close_round(100, Moved(100, 100), 4)

    unbroken = Ledger(ranks=2)
    first(unbroken)
    saved = json.loads(json.dumps(unbroken.state()))  # it travels as JSON
    second(unbroken)

    resumed = Ledger(ranks=2)
    resumed.enter("resume", 512, 0.1)  # whatever was counted before the checkpoint was read belongs to no round
    resumed.restore(saved)
    second(resumed)
    assert resumed.totals() == unbroken.totals()


def test_what_is_lost_was_sent_for_nothing() -> None:
    """Ten clients send 400 bytes each; nothing comes of three of them, then of none. Totals go on after a pause."""
    ledger = Ledger(ranks=2)
    first = ledger.close_round(100, Moved(1_000, 1_000, 300), 4)
    assert (first["uplink_bytes"], first["wasted_bytes"], first["downlink_bytes"]) == (4_000, 1_200, 4_000)
    resumed = Ledger(ranks=2)
    resumed.restore(json.loads(json.dumps(ledger.state())))
    assert resumed.close_round(100, Moved(1_000, 1_000, 0), 4)["wasted_bytes"] == 0
    assert resumed.close_round(100, Moved(200, 200, 200), 4)["wasted_bytes"] == 800
    assert (resumed.totals()["wasted_bytes"], resumed.totals()["uplink_bytes"]) == (2_000, 8_800)


def test_where_nothing_can_be_lost_nothing_says_so() -> None:
    ledger = Ledger(ranks=2)
    said = [ledger.close_round(100, Moved(1_000, 1_000), 4), ledger.totals(), ledger.state()]
    assert not any("wasted_bytes" in part for part in said)


def test_a_saved_state_does_not_move_with_the_ledger() -> None:
    ledger = Ledger(ranks=2)
    ledger.enter(EXCHANGE, 400, 1.0)
    saved = json.dumps(ledger.state())
    other = Ledger(ranks=2)
    other.restore(json.loads(saved))
    other.enter(EXCHANGE, 400, 1.0)
    assert json.dumps(ledger.state()) == saved
