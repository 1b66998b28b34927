"""What an operator costs, by hand; to which group it belongs; and what the meta device takes for a GPU's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip import pointwise
from pfedmma.cost.as_on_gpu import as_on_gpu
from pfedmma.stack.linear import linear
from pfedmma.stack.optim import LossScale, OptimizerConfig, initial_state

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from operators import Operator, record


def only(work: Callable[[], object]) -> Operator:
    """The one operator that ``work`` executes."""
    (found,) = record(work)
    return found


def costs(work: Callable[[], object]) -> tuple[str, int, int, int]:
    found = only(work)
    return found.group, found.launches, found.flops, found.bytes


def meta(*size: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.empty(size, device="meta", dtype=dtype, requires_grad=grad)


def test_a_matrix_product() -> None:
    """[3,4] @ [4,5] is 60 multiply-adds, over 12 + 20 numbers read and 15 written."""
    a, b = meta(3, 4), meta(4, 5)
    assert costs(lambda: a @ b) == ("products", 1, 120, 4 * (12 + 20 + 15))
    half = a.bfloat16(), b.bfloat16()
    found = only(lambda: half[0] @ half[1])
    assert (found.precision, found.flops, found.bytes) == ("bf16", 120, 2 * 47)


def test_linear_layers() -> None:
    """A bias is read with the product; that of each client's own layer is copied to the output first, and read there."""
    x, weight, bias = meta(3, 4), meta(5, 4), meta(5)
    assert costs(lambda: F.linear(x, weight, bias)) == ("products", 1, 120, 4 * (12 + 20 + 5 + 15))
    own = meta(2, 3, 4), meta(2, 5, 4), meta(2, 5)
    assert costs(lambda: linear(*own)) == ("products", 2, 240, 4 * (24 + 40 + 10 + 3 * 30))


def test_a_patch_embedding() -> None:
    """Of 2 x 2 patches of 3 x 4 x 4 pixels to 5 numbers: 4 x 48 x 5 multiply-adds."""
    pixels, weight = meta(1, 3, 8, 8), meta(5, 3, 4, 4)
    assert costs(lambda: F.conv2d(pixels, weight, stride=4)) == ("products", 1, 2 * 4 * 48 * 5, 4 * (192 + 240 + 20))


def test_operators_without_products() -> None:
    x = meta(2, 8)
    assert costs(lambda: x.softmax(dim=-1)) == ("element-wise", 1, 0, 4 * 32)
    assert costs(lambda: x + x) == ("element-wise", 1, 0, 4 * 32), "x is read once"
    assert costs(lambda: x.bfloat16()) == ("casts", 1, 0, 6 * 16)
    assert costs(lambda: x.clone()) == ("copies", 1, 0, 4 * 32)
    assert costs(lambda: F.layer_norm(x, (8,), meta(8), meta(8))) == ("norms", 1, 0, 4 * (16 + 8 + 8 + 16 + 2 + 2))
    assert costs(lambda: F.gelu(x)) == ("activations", 1, 0, 4 * 32)
    assert costs(lambda: x.mul_(2.0)) == ("element-wise", 1, 0, 4 * 32)


def test_only_what_is_touched_counts() -> None:
    table, rows, wide = meta(100, 4), torch.arange(2, device="meta"), meta(1, 4).expand(50, 4)
    assert costs(lambda: table[rows]) == ("copies", 1, 0, 2 * 8 + 2 * 4 * 8)
    assert costs(lambda: torch.zeros(2, 4, device="meta")) == ("copies", 1, 0, 4 * 8)
    assert costs(lambda: meta(2, 4).fill_(1.0)) == ("copies", 1, 0, 4 * 8)
    assert costs(lambda: meta(2, 4).copy_(meta(2, 4))) == ("copies", 1, 0, 4 * 16)
    assert costs(lambda: wide.clone()) == ("copies", 1, 0, 4 * (4 + 200))
    on_host = torch.zeros(2, 4)
    assert costs(lambda: on_host.to("meta"))[0] == "copies", "what comes from the host is no cast"
    assert record(lambda: table.view(4, 100).T[1:].unflatten(0, (3, -1)).detach()) == []
    assert record(lambda: torch.empty(3, device="meta")) == []


def test_a_list_of_tensors_is_one_launch_where_strides_agree() -> None:
    new, flat = [meta(2, 3), meta(2, 5)], meta(2, 8)
    assert only(lambda: torch._foreach_copy_([meta(2, 3), meta(2, 5)], new)).launches == 1
    found = only(lambda: torch._foreach_copy_([flat[:, :3], flat[:, 3:]], new))
    assert (found.group, found.launches, found.bytes) == ("copies", 2, 2 * 4 * 16)


def test_attention_and_its_backward_pass() -> None:
    """[2,3] heads, 5 queries and 7 keys of 8 numbers: a product is 2 x 3 x 5 x 7 x 8 multiply-adds, of which there are two, and five."""
    product = 2 * 2 * 3 * 5 * 7 * 8
    with as_on_gpu():
        q, k, v = (meta(2, 3, tokens, 8, dtype=torch.bfloat16, grad=True) for tokens in (5, 7, 7))
        found = record(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    flops = {each.name: each.flops for each in found if each.group == "attention"}
    forward, backward = "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"
    assert flops == {forward: 2 * product, backward: 5 * product}
    assert [each.launches for each in found if each.group == "attention"] == [1, 3]


def test_quick_gelu_with_its_backward_pass_is_one_group() -> None:
    """Three operators, and five on the way back, one of which adds up the two gradients of x; what is around them is not of it."""
    x = meta(2, 8, grad=True)
    names = [each.name for each in record(lambda: (QuickGELU()(x * 2.0) * 3.0).sum().backward()) if each.group == "activations"]
    assert sorted(names) == sorted(["mul", "sigmoid", "mul", "mul", "mul", "sigmoid_backward", "mul", "add"])


def names(work: Callable[[], object], group: str) -> list[str]:
    return [each.name for each in record(work) if each.group == group]


def test_kernels_of_this_project_are_one_operator_each() -> None:
    x, own = meta(2, 8, dtype=torch.bfloat16, grad=True), meta(2, 8, grad=True)

    def norm() -> Tensor:
        return pointwise.add_norm(own, [x], meta(8), meta(8), 1e-5, torch.bfloat16)[1]

    with as_on_gpu():
        assert names(lambda: pointwise.quick_gelu(x).sum().backward(), "activations") == ["quick_gelu", "quick_gelu_backward"]
        found = record(lambda: norm().sum().backward())
        assert [each.name for each in found if each.group == "norms"] == ["add_layer_norm", "add_layer_norm_backward"]
        assert found[0].bytes == 4 * (16 + 8 + 8) + 2 * 16 + (4 + 2) * 16, "read, and written as the sum and as the rounded norm"
        assert not [each for each in found if each.group == "casts"]
    with as_on_gpu(fused=False):
        assert names(norm, "norms") == ["native_layer_norm"] and names(norm, "casts") == ["_to_copy"]
        assert isinstance(pointwise.activation(QuickGELU()), QuickGELU)
    assert not pointwise.fused(x.device) and not x.is_cuda


def test_an_optimizer_step_is_one_group() -> None:
    config, device = OptimizerConfig(), torch.device("meta")
    scale = LossScale(2, device, enabled=False)
    found = record(lambda: scale.guarded_step(config, meta(2, 5), meta(2, 5), initial_state(config, 2, 5, device)))
    assert [each.name for each in found if each.group != "optimizer"] == ["zeros", "zeros"], "the fresh state comes before"
    assert "addcmul_" in [each.name for each in found]
    assert LossScale.guarded_step.__module__ == "pfedmma.stack.optim" and not hasattr(LossScale.guarded_step, "__wrapped__")


def test_a_clock_is_read_before_and_after_each_operator() -> None:
    ticks = iter([0.0, 2.0, 10.0, 13.0])
    assert [each.seconds for each in record(lambda: torch.zeros(3).mul_(2.0), clock=lambda: next(ticks))] == [2.0, 3.0]


def mixed(x: Tensor, weight: Tensor, device: str) -> list[torch.dtype]:
    """Types of a product, a norm, a product of the trained weight, and one outside of mixed precision."""
    with torch.autocast(device, torch.bfloat16):
        results = [F.linear(x, weight), F.layer_norm(x, x.shape[-1:]), x @ weight]
        with torch.autocast(device, enabled=False):
            results.append(torch.mm(x, weight))
    return [result.dtype for result in [*results, x @ weight]]


def test_autocast_rounds_as_it_does_elsewhere() -> None:
    wanted = mixed(torch.ones(4, 4), torch.ones(4, 4, requires_grad=True), "cpu")
    with as_on_gpu():
        assert mixed(meta(4, 4), meta(4, 4, grad=True), "meta") == wanted
    with pytest.raises(RuntimeError, match="autocast"):
        torch.autocast("meta", torch.bfloat16)


def test_autocast_keeps_copies_of_trained_tensors_alone_until_it_is_left() -> None:
    x, weight = meta(4, 4), meta(4, 4, grad=True)

    def twice() -> None:
        with torch.autocast("meta", torch.bfloat16):
            assert (x @ weight).dtype == (x @ weight).dtype == torch.bfloat16

    with as_on_gpu():
        casts = [each for each in record(lambda: (twice(), twice())) if each.group == "casts"]
    assert len(casts) == 4 + 2, "x each of four times, the weight once each time"


@pytest.mark.parametrize(
    ("dtype", "masked", "kernel"), [("bfloat16", False, "flash"), ("bfloat16", True, "efficient"), ("float32", False, "efficient")]
)
def test_the_kernel_of_attention(dtype: str, masked: bool, kernel: str) -> None:
    q = meta(2, 3, 5, 8, dtype=getattr(torch, dtype))
    mask = meta(2, 1, 1, 5, dtype=torch.bool) if masked else None
    with as_on_gpu():
        found = record(lambda: F.scaled_dot_product_attention(q, q, q, mask))
    assert [each.name for each in found if each.group == "attention"] == [f"_scaled_dot_product_{kernel}_attention"]
