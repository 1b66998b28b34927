"""Triton's kernels run by its interpreter on a CPU, beside what torch computes; a program that says "alike" after each comparison."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from pfedmma import rng
from pfedmma.clip import kernels, pointwise

ROWS, WIDTH, EPS = 7, 48, 1e-5  # a width that is no power of two


def drawn(*shape: int, key: int) -> torch.Tensor:
    return 3.0 * torch.randn(shape, generator=rng.generator(0, "interpreted", key))


def main() -> None:
    assert pointwise._as_torch(torch.device("cpu"))  # what a run tries before it uses them
    print("alike")
    x, grad = drawn(ROWS, WIDTH, key=0) + 50.0, drawn(ROWS, WIDTH, key=1)  # a mean that is large beside the spread
    weight, bias = drawn(WIDTH, key=2), drawn(WIDTH, key=3)
    for terms in ([], [0.1 * grad.bfloat16(), -grad]):
        leaf = sum(terms, x).requires_grad_()
        wanted = norm_of(leaf, weight, bias)
        total, normed = kernels.add_norm(x, terms, weight, bias, EPS, torch.bfloat16)
        assert torch.equal(total, leaf)
        compare(normed, wanted.bfloat16(), 1e-2)
        back = torch.autograd.grad(wanted, leaf, grad)[0]
        compare(kernels.add_norm_backward(None, grad, leaf.detach(), weight, EPS, None)[0], back, 1e-4)
        whole, low = kernels.add_norm_backward(x, grad.bfloat16().float(), leaf.detach(), weight, EPS, torch.bfloat16)
        compare(low, whole.bfloat16(), 1e-2)
        compare(whole, x + torch.autograd.grad(norm_of(leaf, weight, bias), leaf, grad.bfloat16().float())[0], 1e-4)
    many, leaf = drawn(3, 700, key=4), drawn(3, 700, key=4).requires_grad_()  # more than one block, and not a multiple of it
    wanted = leaf * torch.sigmoid(pointwise.SLOPE * leaf)
    compare(kernels.quick_gelu(many.bfloat16()), wanted.bfloat16(), 2e-2)
    compare(kernels.quick_gelu_backward(many, many), torch.autograd.grad(wanted, leaf, many)[0], 1e-5)


def norm_of(leaf: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(leaf, (WIDTH,), weight, bias, EPS)


def compare(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * float(wanted.detach().abs().max()))
    print("alike")


if __name__ == "__main__":
    main()
