"""A model with adapters is an ordinary module: other precisions, other devices, copies, and state dicts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pfedmma
from pfedmma.portable.adapted_clip import AdaptedCLIP
from tests.support import specimens

PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[1, 2, 9, 0], [1, 3, 4, 9]])
PRECISIONS = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32, "double": torch.float64}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return specimens.put(tmp_path / "adapter.safetensors", specimens.good_adapter())


@pytest.fixture
def model(file: Path) -> AdaptedCLIP:
    """Adapters on a CLIP of its own, which tests may change."""
    return pfedmma.load_adapter(copy.deepcopy(specimens.clip()), file)


def tokens() -> Tensor:
    return nn.functional.pad(TOKENS, (0, specimens.TEXT["context_length"] - TOKENS.shape[1]))


def answers(model: AdaptedCLIP, pixels: Tensor = PIXELS) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model.encode_image(pixels, normalize=True), model.encode_text(tokens().to(pixels.device), normalize=True)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_features_are_those_of_fp32_in_the_precision_of_the_module(model: AdaptedCLIP, precision: str, used: bool):
    wanted = answers(copy.deepcopy(model))
    if used:
        answers(model)  # so that a frozen view is there
    dtype = PRECISIONS[precision]
    for pixels in (PIXELS.to(dtype), PIXELS):
        found = answers(getattr(model, precision)(), pixels)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == dtype
            step = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
            torch.testing.assert_close(one.float(), other, rtol=0, atol=8 * step)
    images, texts, scale = model(PIXELS.to(dtype), tokens())
    assert (scale * images @ texts.T).dtype == dtype


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_trains_in_that_precision(model: AdaptedCLIP, precision: str):
    model = getattr(model, precision)()
    images, texts, _ = model(PIXELS.to(PRECISIONS[precision]), tokens())
    (images @ texts.T).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert any(bool((p.grad != 0).any()) for p in model.parameters())
    assert all(p.grad is None for p in model.clip.parameters())


def test_there_and_back(model: AdaptedCLIP):
    wanted = answers(copy.deepcopy(model).half().float())
    for one, other in zip(answers(model.half().double().float()), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_adapters_in_fp32_on_a_clip_in_half(file: Path):
    model = pfedmma.load_adapter(copy.deepcopy(specimens.clip()).half(), file)
    wanted = answers(pfedmma.load_adapter(copy.deepcopy(specimens.clip()), file))
    for one, other in zip(answers(model), wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=5e-3)


def test_on_no_device(model: AdaptedCLIP):
    model = model.to("meta")
    images, texts = answers(model, PIXELS.to("meta"))
    assert images.device.type == texts.device.type == "meta" and images.shape == texts.shape == (2, 8)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_a_model_of_its_own(model: AdaptedCLIP, used: bool, copied: Callable[[AdaptedCLIP], AdaptedCLIP]):
    wanted = answers(copy.deepcopy(model))
    if used:
        answers(model)
    other = copied(model)
    assert other.clip is not model.clip
    with torch.no_grad():
        for parameter in [*other.parameters(), *other.clip.parameters()]:
            parameter.zero_()
    assert not any(torch.equal(one, two) for one, two in zip(answers(other), wanted, strict=True))
    other.half()
    for one, two in zip(answers(model), wanted, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_state_dict_round_trip(model: AdaptedCLIP, file: Path, tmp_path: Path, precision: str):
    model = getattr(model, precision)()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = getattr(pfedmma.load_adapter(copy.deepcopy(specimens.clip()), file), precision)()
    assert not torch.equal(answers(other)[0], answers(model)[0])
    for assign in (False, True):
        assert not any(other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), assign=assign))
        for one, two in zip(answers(other), answers(model), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_round_trip(model: AdaptedCLIP, tmp_path: Path, precision: str):
    model = getattr(model, precision)()
    pfedmma.save_adapter(model, tmp_path / "again.safetensors")
    other = pfedmma.load_adapter(copy.deepcopy(specimens.clip()), tmp_path / "again.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), parameter.float(), rtol=0, atol=0)
