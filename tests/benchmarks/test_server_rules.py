"""The benchmark of the server's rules: what it counts follows from the sizes."""

from __future__ import annotations

import pytest

from tests.benchmarks.programs import LIMIT, report_of, run

pytestmark = pytest.mark.timeout(LIMIT)


def test_bytes_follow_from_the_sizes() -> None:
    report = report_of(run("server_rules.py", "--participants", "3", "--rounds", "1"))
    rows = {(row["exchanged"], row["server"]): row for row in report["rows"]}
    assert len(rows) == 2 * 8 and all(row["seconds"] > 0 and row["participants"] == 3 for row in rows.values())
    assert rows["S", "average"]["payload_bytes"] == rows["S", "noise of clients"]["payload_bytes"] == 33_792
    assert rows["S", "secure sum"]["payload_bytes"] == 2 * 33_792  # 32-bit words in 64-bit carriers
    assert rows["S", "trimmed_mean"]["payload_bytes"] == 3 * 33_792
    assert rows["S", "norm_clip"]["payload_bytes"] == 33_792 + 3 * 4  # the lengths of three ways
    assert {row["key_bytes_modelled"] for row in rows.values()} == {0, 2 * 3 * 32 + (5 * 3 - 4) * 32}
