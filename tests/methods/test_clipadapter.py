"""CLIP-Adapter: its size, its features by torch's own modules and by hand, and why it must not start at zero."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.stems import Features
from pfedmma.config import schema
from pfedmma.methods import registry
from pfedmma.methods.clipadapter import CLIPAdapter, CLIPAdapterConfig
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import MEAN
from pfedmma.system.errors import UserError
from tests.support.open_clip_prompts import hollow


def new_method(clip: nn.Module, alpha: float = 0.2) -> CLIPAdapter:
    return CLIPAdapter.from_settings(CLIPAdapterConfig(alpha), Backbone.freeze(clip, "tiny"))


def new_state(method: CLIPAdapter, clients: int = 2, strength: float = 3.0) -> dict[str, Tensor]:
    """Clients of their own, and weights so strong that what they do is far above rounding."""
    states = [method.initial(rng.generator(0, "state", client)) for client in range(clients)]
    return {name: strength * torch.stack([state[name] for state in states]) for name in states[0]}


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng.generator(0, "features"))


def test_sizes_and_start_at_vit_b_16() -> None:
    """524,288 bytes; weights within 1 / sqrt(512) and 1 / sqrt(128)."""
    method = registry.build(MethodConfig("clipadapter"), hollow("ViT-B-16"))
    layout = Layout(method.shapes, method.exchange)
    assert layout.size == layout.exchanged_size == 2 * 128 * 512 == 131_072
    assert layout.columns == {MEAN: slice(0, 131_072)} and 4 * layout.exchanged_size == 524_288
    for name, bound in {"down.weight": 0.0442, "up.weight": 0.0884}.items():
        tensor = method.initial(rng.generator(0, "init"))[name]
        assert tensor.abs().max() == pytest.approx(bound, rel=1e-3)
        assert tensor.std() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_another_backbone_has_another_width() -> None:
    assert registry.build(MethodConfig("clipadapter"), hollow("ViT-L-14")).shapes == {"down.weight": (192, 768), "up.weight": (768, 192)}


def test_settings() -> None:
    assert CLIPAdapterConfig().alpha == 0.2
    optimizer = schema.load(None, ["method.name=clipadapter"]).optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adam", 1e-5, 0.0)
    for alpha in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"alpha: must be at (least 0|most 1)"):
            CLIPAdapterConfig(alpha)


def test_by_hand(tiny_clip: nn.Module) -> None:
    """f = (3, 4, 0, ..) of norm 5. Down: row 0 takes f_0, row 1 takes -f_1, which the ReLU cuts; up: 3 goes to the first two numbers."""
    method, f = new_method(tiny_clip, alpha=0.5), torch.zeros(1, 64)
    f[0, :2] = torch.tensor([3.0, 4.0])
    state = {name: torch.zeros(1, *shape) for name, shape in method.shapes.items()}
    state["down.weight"][0, 0, 0], state["down.weight"][0, 1, 1] = 1.0, -1.0
    state["up.weight"][0, 0, 0], state["up.weight"][0, 1, 0], state["up.weight"][0, 2, 0] = 3.0, 2.0, -1.0
    got = method.image_features(state, Features(f))
    # A = (9, 6, 0), f' = (6, 5, 0) / sqrt(61).
    wanted = torch.zeros(1, 1, 64)
    wanted[0, 0, :2] = torch.tensor([6.0, 5.0]) / math.sqrt(61)
    torch.testing.assert_close(got, wanted)


def test_features_are_those_of_torchs_modules(tiny_clip: nn.Module) -> None:
    """Each client's own, of CLIP's feature before it is normalised."""
    method, raw = new_method(tiny_clip), 4.0 * features(4, 64)
    state = new_state(method)
    got = method.image_features(state, Features(raw))  # two images a client
    for client in range(2):
        down, up = nn.Linear(64, 16, bias=False), nn.Linear(16, 64, bias=False)
        for module, name in ((down, "down.weight"), (up, "up.weight")):
            module.load_state_dict({"weight": state[name][client]})
        own = raw[2 * client : 2 * client + 2]
        wanted = F.normalize(0.2 * nn.Sequential(down, nn.ReLU(), up, nn.ReLU())(own) + 0.8 * own, dim=-1).detach()
        torch.testing.assert_close(got[client], wanted, rtol=1e-5, atol=1e-6)
        assert (got[client] - F.normalize(own, dim=-1)).abs().max() > 0.05


def test_without_its_share_or_its_output_it_is_clip_exactly(tiny_clip: nn.Module) -> None:
    raw = features(4, 64)
    wanted = F.normalize(raw, dim=-1).unflatten(0, (2, 2))
    none = new_method(tiny_clip, alpha=0.0)
    assert torch.equal(none.image_features(new_state(none), Features(raw)), wanted)
    method = new_method(tiny_clip)
    state = new_state(method) | {"up.weight": torch.zeros(2, 64, 16)}
    torch.testing.assert_close(method.image_features(state, Features(raw)), wanted, rtol=1e-6, atol=1e-7)


def test_from_zero_nothing_is_trained(tiny_clip: nn.Module) -> None:
    """The derivative of a ReLU at 0 is 0; where it starts, both weights have a gradient."""
    method = new_method(tiny_clip)
    raw, towards = features(4, 64), features(2, 2, 64)
    for zero in (True, False):
        start = new_state(method) | ({"up.weight": torch.zeros(2, 64, 16)} if zero else {})
        state = {name: tensor.requires_grad_() for name, tensor in start.items()}
        gradients = torch.autograd.grad((method.image_features(state, Features(raw)) * towards).sum(), list(state.values()))
        assert [bool(gradient.any()) for gradient in gradients] == [not zero] * 2
