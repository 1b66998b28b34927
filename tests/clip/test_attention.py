"""The attention kernels that a GPU may take: cuDNN's only where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip import attention, loading
from pfedmma.clip.loading import BackboneConfig
from pfedmma.system.errors import UserError

FLAGS = ("flash", "mem_efficient", "cudnn", "math")


def allowed() -> set[str]:
    return {name for name in FLAGS if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = allowed()
    yield
    for name in FLAGS:
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(name in before)


WANTED = {
    "auto": {"flash", "mem_efficient", "math"},
    "flash": {"flash", "math"},
    "efficient": {"mem_efficient", "math"},
    "cudnn": {"flash", "mem_efficient", "cudnn", "math"},
    "math": {"math"},
}


class Movable(nn.Module):
    """A model on the CPU that says it went to a GPU."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def to(self, device: Any) -> Any:
        return self.clip


@pytest.mark.parametrize("choice", WANTED)
def test_loading_onto_a_gpu_chooses_the_kernels(tiny_clip: nn.Module, monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    """From any choice before."""
    monkeypatch.setattr(loading, "create_model", lambda config, seed: Movable(tiny_clip))
    for before in WANTED:
        attention.use(before)
        loading.load(BackboneConfig(precision="bf16", attention=choice), 0, torch.device("cuda"))
        assert allowed() == WANTED[choice]


def test_on_a_cpu_everything_stays_as_it_is() -> None:
    before = allowed()
    loading.load(BackboneConfig(pretrained="none", attention="math"), 0, torch.device("cpu"))
    assert allowed() == before


def test_cudnn_has_to_be_asked_for() -> None:
    assert [choice for choice, kernels in attention.CHOICES.items() if "cudnn" in kernels] == ["cudnn"]
    assert BackboneConfig().attention == "auto"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "triton"}, "attention: 'triton' is not known; choose one of auto, flash, efficient, cudnn, math"),
        (
            {"attention": "flash"},
            "attention: flash takes no fp32; set backbone.precision to bf16 or fp16, or backbone.attention=efficient",
        ),
        ({"text_gb": 0}, "text_gb: must be at least 0.1, not 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        BackboneConfig(**options)
    assert str(caught.value) == message


def test_a_backbone_keeps_the_memory_of_its_settings() -> None:
    frozen = loading.load(BackboneConfig(pretrained="none", text_gb=0.5), 0, torch.device("cpu"))
    assert frozen.text.keeps == 0.5e9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_all_kernels_give_the_same(precision: torch.dtype, masked: bool) -> None:
    """Outputs and gradients, causal or with the mask of a pooled token, near those of plain products in fp64."""
    found = {}
    for choice in WANTED:
        attention.use(choice)
        found[choice] = outputs(precision, masked)
    wanted = outputs(torch.float64, masked)
    tolerance = 1e-4 if precision == torch.float32 else 0.03
    for choice, tensors in found.items():
        for got, exact in zip(tensors, wanted, strict=True):
            assert (got.double() - exact).abs().max() < tolerance * exact.abs().max(), choice


def outputs(precision: torch.dtype, masked: bool) -> list[Tensor]:
    """Attention of 6 sequences of 13 tokens in 2 heads, and gradients; fp64 by plain products."""
    shapes = [(6, 2, 1 if masked and part == 0 else 13, 64) for part in range(3)]
    q, k, v = (torch.randn(shape, generator=rng.generator(0, "qkv", i)).cuda().to(precision) for i, shape in enumerate(shapes))
    leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
    mask = (torch.arange(13, device="cuda") <= torch.arange(6, device="cuda")[:, None] + 5)[:, None, None] if masked else None
    if precision == torch.float64:
        seen = torch.ones(13, 13, dtype=torch.bool, device="cuda").tril() if mask is None else mask
        mixed = (q @ k.mT / 8).masked_fill(~seen, -torch.inf).softmax(dim=-1) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not masked)
    direction = torch.randn(mixed.shape, generator=rng.generator(0, "direction")).cuda().to(precision)
    return [mixed.detach(), *torch.autograd.grad((mixed * direction).sum(), leaves)]
