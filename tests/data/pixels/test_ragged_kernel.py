"""The kernel for a GPU equals the form in operations of torch: interpreted where there is no GPU, and compiled for the GPUs it is for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pfedmma.data.pixels.device_images import tried_kernel

ROOT = Path(__file__).resolve().parents[3]


def compiled_with() -> ModuleType:
    """Triton; a test is skipped where it is not, or too old to be interpreted beside today's numpy."""
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 4):
        pytest.skip(f"triton {triton.__version__} cannot interpret loops beside this numpy")
    return triton


# Crops of kept and staged images of odd shapes, made by the kernel and in operations of torch, and how far apart they are. A program of its
# own, since Triton decides at its import whether it interprets.
PROGRAM = """
import sys, torch
from pfedmma.data.pixels import ragged, ragged_kernel
from tests.support.laid_out import drawn, laid_out
gen, device = torch.Generator().manual_seed(0), sys.argv[1]
pictures = [torch.randint(256, (3, *size), generator=gen).to(torch.uint8) for size in ((1, 1), (40, 5), (24, 33))]
_, flips, boxes = drawn(pictures)
buffers, crops = laid_out(pictures, boxes, torch.tensor([True, False, True]))
buffers = [buffer.to(device) for buffer in buffers]
crops = ragged.Crops(crops.table.to(device), crops.rows, crops.longest)
addresses = torch.tensor([buffer.data_ptr() for buffer in buffers[:-1]], device=device)
made = ragged_kernel.crop_resize(addresses, buffers[-1], crops.table, 20)
print((made.int() - ragged.crop_resize(buffers, crops, 20).int()).abs().max().item())
"""


def check(device: str, interpret: str) -> None:
    env = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, device], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= 1


def test_interpreted_it_makes_the_same_crops() -> None:
    compiled_with()
    check("cpu", interpret="1")


@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_without_a_gpu_of_the_kind(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = compiled_with()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pfedmma.data.pixels import ragged_kernel

    kinds = {"addresses": "*i64", "staged": "*u8", "table": "*i64", "made": "*u8", "size": "i32"}
    constants = {"TILE": ragged_kernel.TILE, "AT_ONCE": ragged_kernel.AT_ONCE}
    source = ASTSource(ragged_kernel._tile, {**kinds, "TILE": "constexpr", "AT_ONCE": "constexpr"}, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(made.asm["cubin"]) > 0 and made.metadata.shared < 48 * 1024  # within what every GPU gives without being asked


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_makes_the_same_crops() -> None:
    compiled_with()
    check("cuda", interpret="0")
    assert tried_kernel(torch.device("cuda")) is not None


def test_there_is_no_kernel_without_a_gpu() -> None:
    assert tried_kernel(torch.device("cpu")) is None and tried_kernel(torch.device("meta")) is None
