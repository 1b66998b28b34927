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
    leaf = x.clone().requires_grad_()
    wanted = torch.nn.functional.layer_norm(leaf, (WIDTH,), weight, bias, EPS)
    compare(kernels.layer_norm(x, weight, bias, EPS, torch.bfloat16), wanted.bfloat16(), 1e-2)
    compare(kernels.layer_norm_backward(grad, x, weight, EPS), torch.autograd.grad(wanted, leaf, grad)[0], 1e-4)
    many, leaf = drawn(3, 700, key=4), drawn(3, 700, key=4).requires_grad_()  # more than one block, and not a multiple of it
    wanted = leaf * torch.sigmoid(pointwise.SLOPE * leaf)
    compare(kernels.quick_gelu(many.bfloat16()), wanted.bfloat16(), 2e-2)
    compare(kernels.quick_gelu_backward(many, many), torch.autograd.grad(wanted, leaf, many)[0], 1e-5)


def compare(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * float(wanted.detach().abs().max()))
    print("alike")


if __name__ == "__main__":
    main()
