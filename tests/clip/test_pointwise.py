"""What stands between a block's matrix products is what torch's own functions make, forward and backward, whoever computes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip import pointwise
from pfedmma.clip.towers import take

QUICK = open_clip.transformer.QuickGELU()


def drawn(*shape: int, key: int = 0) -> Tensor:
    return 3.0 * torch.randn(shape, generator=rng.generator(0, "pointwise", key))


def with_gradient(function, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """What ``function`` makes of ``x``, and the gradient of ``x`` where ``grad`` comes back."""
    x = x.clone().requires_grad_()
    out = function(x)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


@pytest.mark.parametrize("function", [pointwise.quick_gelu, pointwise.QuickGelu.apply])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_has_the_very_bits_of_open_clips(function, dtype: torch.dtype) -> None:
    x, grad = drawn(5, 33).to(dtype), drawn(5, 33, key=1).to(dtype)
    got, wanted = with_gradient(function, x, grad), with_gradient(QUICK, x, grad)
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])


def test_quick_gelu_keeps_its_input_alone() -> None:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        pointwise.QuickGelu.apply(x := drawn(4, 8).requires_grad_())
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


def test_only_quick_gelu_is_replaced() -> None:
    gelu = nn.GELU()
    assert pointwise.activation(QUICK) is pointwise.quick_gelu and pointwise.activation(gelu) is gelu


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_norm_of_a_sum_is_torchs_and_then_rounded(count: int) -> None:
    x, weight, bias = drawn(3, 5, 16), drawn(16, key=1), drawn(16, key=2)
    terms = [drawn(3, 5, 16, key=3 + i) for i in range(count)]
    total = x
    for term in terms:
        total = total + term
    wanted = F.layer_norm(total, (16,), weight, bias, 1e-5)
    for dtype in (torch.float32, torch.bfloat16):
        got = pointwise.add_norm(x, terms, weight, bias, 1e-5, dtype)
        assert torch.equal(got[0], total) and torch.equal(got[1], wanted.to(dtype))


class InPlainTorch:
    """What Triton's kernels are to compute."""

    @staticmethod
    def add_norm(x: Tensor, terms: Sequence[Tensor], weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        total = sum(terms, x)
        return total, F.layer_norm(total, weight.shape, weight, bias, eps).to(dtype)

    @staticmethod
    def add_norm_backward(on, grad: Tensor, total: Tensor, weight: Tensor, eps: float, low):
        with torch.enable_grad():
            leaf = total.clone().requires_grad_()
            out = F.layer_norm(leaf, weight.shape, weight, None, eps)
        whole = torch.autograd.grad(out, leaf, grad.float())[0] + (0.0 if on is None else on)
        return whole, None if low is None else whole.to(low)


@pytest.mark.parametrize("used", ["both", "sum", "norm"])
@pytest.mark.parametrize("types", [(), (torch.float32,), (torch.bfloat16, torch.float32)])
def test_the_fused_norm_has_the_gradients_of_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, used: str, types: tuple[torch.dtype, ...]
) -> None:
    """Of everything that is added, whichever of the two results goes on."""
    monkeypatch.setattr(pointwise, "kernels", InPlainTorch)
    weight, bias = drawn(16, key=1), drawn(16, key=2)
    grads = drawn(3, 5, 16, key=8), drawn(3, 5, 16, key=9)
    found = []
    for function in (lambda x, *terms: pointwise.AddedNorm.apply(weight, bias, 1e-5, torch.float32, x, *terms), plain_of(weight, bias)):
        leaves = [drawn(3, 5, 16, key=3 + i).to(dtype).requires_grad_() for i, dtype in enumerate((torch.float32, *types))]
        total, normed = function(*leaves)
        through = {"both": (2.0 * total * grads[0]).sum() + (normed * grads[1]).sum(), "sum": (2.0 * total * grads[0]).sum()}
        found.append(torch.autograd.grad(through.get(used, (normed * grads[1]).sum()), leaves))
    for got, wanted in zip(*found, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 if got.dtype == torch.float32 else 0.05)


def plain_of(weight: Tensor, bias: Tensor):
    return lambda x, *terms: pointwise.add_norm(x, [term.float() for term in terms], weight, bias, 1e-5, torch.float32)


@pytest.mark.parametrize("same", [True, False])
def test_the_pooled_token_and_its_gradient(same: bool) -> None:
    x, grad = drawn(4, 6, 3), drawn(4, 1, 3, key=1)
    index = torch.tensor([2, 2, 2, 2] if same else [0, 5, 2, 5])
    got = with_gradient(lambda x: take(x, 2 if same else index), x, grad)
    wanted = with_gradient(lambda x: x[torch.arange(4), index].unsqueeze(1), x, grad)
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])


def test_a_pooled_token_does_not_hold_the_others() -> None:
    assert take(drawn(4, 6, 3), 0).untyped_storage().nbytes() == 4 * 3 * 4


def test_where_there_is_no_gpu_nothing_is_fused() -> None:
    assert not pointwise.fused(torch.device("cpu"))


def test_what_cannot_be_had_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_triton(device: torch.device) -> bool:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(pointwise, "_as_torch", no_triton)
    pointwise.fused.cache_clear()
    try:
        assert not any(pointwise.fused(torch.device("cuda", 0)) for _ in range(2))
    finally:
        pointwise.fused.cache_clear()
    assert capsys.readouterr().err.count("No module named 'triton'") == 1


def test_tritons_kernels_compute_what_torch_does() -> None:
    """By Triton's interpreter, which reads its variable when triton is first imported: in a process of its own."""
    pytest.importorskip("triton")
    root = Path(__file__).resolve().parents[2]
    program = [sys.executable, "-m", "tests.support.interpreted"]
    done = subprocess.run(program, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["alike"] * 11
