"""The time of operators and of an exchange on a device of round numbers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from devices import GPUS, NODE, Device
from operators import Operator

HALVES = {"products": 0.5, "attention": 0.25, "memory": 0.5}
ROUND = Device(
    "round", "made up", {"bf16": 1000.0, "fp32": 100.0}, 200.0, HALVES, host=0.5, smallest=0.125, link=10.0, network=1.0, hop=(1.0, 2.0)
)


def operator(flops: int = 0, nbytes: int = 0, group: str = "products", precision: str = "bf16", launches: int = 1) -> Operator:
    return Operator("mm", group, precision, launches, flops, nbytes)


def test_an_operator_takes_the_longest_of_its_three_times() -> None:
    assert ROUND.busy(operator(flops=1000, nbytes=100)) == 2.0, "operations, at half of 1000 a second"
    assert ROUND.busy(operator(flops=1000, precision="fp32")) == 20.0
    assert ROUND.busy(operator(flops=1000, group="attention")) == 4.0
    assert ROUND.busy(operator(flops=1000, nbytes=300)) == 3.0, "bytes, at half of 200 a second"
    assert ROUND.busy(operator(launches=3)) == 0.375, "the smallest kernels"


def test_a_step_takes_as_long_as_the_slower_of_device_and_host() -> None:
    assert ROUND.seconds([operator(nbytes=100)] * 4) == 4.0
    assert ROUND.seconds([operator()] * 4) == 2.0
    mixed = [operator(nbytes=200), operator(), operator()]
    assert ROUND.seconds(mixed) == 2.25, "the host is done after 1.5, while the first still runs"
    assert replace(ROUND, own_host=True).seconds(mixed) == 2.25 + 1.5, "a CPU does one after another"


def test_a_ring() -> None:
    """Of 4: six steps of a quarter; of more than a machine holds, over the network."""
    assert ROUND.exchange(80, 1) == 0.0
    assert ROUND.exchange(80, 4) == 6 * (1.0 + 20 / 10)
    assert ROUND.exchange(160, 2 * NODE) == 30 * (2.0 + 10 / 1)


@pytest.mark.parametrize("name", GPUS)
def test_the_table_of_devices(name: str) -> None:
    """Numbers of data sheets: tensor cores in half precision are twice as fast as in TF32, and NVLink is quoted for both directions."""
    device = GPUS[name]
    assert device.peak["bf16"] == device.peak["fp16"] == pytest.approx(2 * device.peak["tf32"], rel=1e-2)
    assert device.peak["fp32"] < device.peak["tf32"] and "data sheet" in device.source
    assert all(0 < part < 1 for part in device.efficiency.values()) and device.network < device.link
