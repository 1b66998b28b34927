"""The account of what a GPU does: which kernel is of which kind, and when it is busy. The kernels' names were seen on a Hopper GPU."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from tests.benchmarks.programs import LIMIT, ROOT, one_sentence, run

pytestmark = pytest.mark.timeout(LIMIT)
SEEN = {
    "nvjet_sm90_tst_192x192_64x4_1x2_h_bz_coopB_bias_TNN": "products",
    "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x8_stage3_warpsize1x2x1_ffma_aligna4_alignc4_execute_kernel__5x_cublas": "products",
    "void pytorch_flash::flash_bwd_dot_do_o_kernel<true, Flash_bwd_kernel_traits<64, 128, 128, 8>": "attention",
    "fmha_cutlassB_bf16_aligned_64x64_k64_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<cutlass::arch::Sm80>": "attention",
    "void at::native::unrolled_elementwise_kernel<at::native::CUDAFunctor_add<float>, std::array<char*, 3ul>, 4>": "element-wise",
    "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::direct_copy_kernel_cuda(": "copies",
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<at::native::OpaqueType<2u>>": "copies",
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float, false>": "norms",
    "_add_norm_backward": "norms",
    "_quick_gelu": "activations",
    "Memset (Device)": "fills",
    "Memcpy DtoD (Device -> Device)": "copies",
    "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<c10::BFloat16, at::native::sum_functor>>": "reductions",
}


@pytest.fixture
def gpu_profile(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_profile")


def test_without_a_gpu_it_says_so() -> None:
    one_sentence(run("gpu_profile.py"), "torch sees none here")


def test_kernels_by_their_names(gpu_profile: ModuleType) -> None:
    assert {name: gpu_profile.group_of(name) for name in SEEN} == SEEN


def test_what_runs_at_the_same_time_counts_once(gpu_profile: ModuleType) -> None:
    kernels = [gpu_profile.Kernel("", *times) for times in ((10.0, 20.0), (0.0, 4.0), (15.0, 18.0), (19.0, 23.0))]
    assert gpu_profile.covered(kernels) == 4.0 + 13.0


def test_an_account_is_of_one_run(gpu_profile: ModuleType) -> None:
    """Two runs: a product of 3 and of 5 microseconds, and one copy of 2."""
    kernels = [gpu_profile.Kernel(*of) for of in (("nvjet", 0.0, 3.0), ("Memcpy", 3.0, 5.0), ("nvjet", 10.0, 15.0))]
    found = gpu_profile.account(kernels, times=2, seconds=10e-6)
    assert found["busy_s"] == pytest.approx(5e-6) and found["busy"] == pytest.approx(0.5) and found["launches"] == 1.5
    assert found["groups"]["products"] == pytest.approx({"seconds": 4e-6, "launches": 1.0})
    assert found["groups"]["copies"] == pytest.approx({"seconds": 1e-6, "launches": 0.5})
    assert found["longest"][0] == {"kernel": "nvjet", "seconds": pytest.approx(4e-6)}
    gpu_profile.show(gpu_profile.table({"2 clients, graph": found}))
