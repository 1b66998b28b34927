"""How exactly a GPU computes: what torch is told, once for the whole process, before the first kernel is chosen."""

from __future__ import annotations

import os

import torch

from pfedmma.system.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
REPEATABLE = (":4096:8", ":16:8")  # values of it with which cuBLAS always computes alike


def choose(device: torch.device, tf32: bool, deterministic: bool) -> None:
    """Choose the kernels of a GPU; on a CPU there is nothing to choose.

    Args:
        tf32: products of fp32 numbers may round these to 10 bits.
        deterministic: only kernels whose results are the same bits every time; that includes the backward passes of attention.

    Raises:
        UserError: the environment forbids it.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.allow_tf32 = tf32  # torch's default rounds the patch embedding
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if deterministic:
        said = os.environ.setdefault(WORKSPACE, REPEATABLE[0])  # cuBLAS reads it before its first product
        if said not in REPEATABLE:
            raise UserError(
                f"backbone.deterministic: the environment says {WORKSPACE}={said}, with which cuBLAS may compute otherwise every time; "
                f"unset it, or set it to {' or '.join(REPEATABLE)}"
            )
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # each number is written first
        torch.use_deterministic_algorithms(True)
