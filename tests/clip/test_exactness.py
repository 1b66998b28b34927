"""What torch is told before a GPU computes, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pfedmma.clip import exactness, loading
from pfedmma.clip.loading import BackboneConfig, load
from pfedmma.config import schema
from pfedmma.system.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def told() -> tuple[str, bool, bool]:
    """Whether torch rounds in products and in convolutions, and whether it takes deterministic kernels alone."""
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(exactness.WORKSPACE, "")  # so that it is as before afterwards
    monkeypatch.delenv(exactness.WORKSPACE)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    precision, convolutions, deterministic = told()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.use_deterministic_algorithms(deterministic)


def test_a_gpu_does_not_round_unless_it_is_asked_to() -> None:
    exactness.choose(GPU, tf32=True, deterministic=False)
    assert told() == ("high", True, False)
    exactness.choose(GPU, tf32=False, deterministic=False)
    assert told() == ("highest", False, False)


def test_the_same_bits_every_time() -> None:
    exactness.choose(GPU, tf32=False, deterministic=True)
    assert told() == ("highest", False, True)
    assert exactness.os.environ[exactness.WORKSPACE] == ":4096:8"


def test_an_environment_that_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(exactness.WORKSPACE, ":16:8")
    exactness.choose(GPU, tf32=False, deterministic=True)
    torch.use_deterministic_algorithms(False)
    monkeypatch.setenv(exactness.WORKSPACE, ":0:0")
    with pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0.* unset it, or set it to :4096:8 or :16:8$"):
        exactness.choose(GPU, tf32=False, deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_cpu_has_no_choice() -> None:
    before = told()
    exactness.choose(CPU, tf32=True, deterministic=True)
    assert told() == before and exactness.WORKSPACE not in exactness.os.environ


def test_the_settings_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[object, ...]] = []
    monkeypatch.setattr(loading.exactness, "choose", lambda *options: chosen.append(options))
    load(BackboneConfig(), 0, CPU)
    load(schema.load(None, ["backbone.tf32=true", "backbone.deterministic=true"]).backbone, 0, CPU)
    assert chosen == [(CPU, False, False), (CPU, True, True)]


def test_nothing_is_compiled_where_every_bit_counts() -> None:
    assert BackboneConfig(deterministic=True).compiles == "off"
    assert [BackboneConfig(compile=choice).compiles for choice in ("auto", "on", "off")] == ["auto", "on", "off"]
    with pytest.raises(UserError, match=r"^backbone.deterministic: .* leave out backbone.compile=on"):
        schema.load(None, ["backbone.deterministic=true", "backbone.compile=on"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_rounding_is_about_fp32(precision: str) -> None:
    with pytest.raises(UserError, match=rf"^backbone.tf32: .* backbone.precision is {precision}"):
        schema.load(None, ["backbone.tf32=true", f"backbone.precision={precision}"])
