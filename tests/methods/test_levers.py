"""The levers of the adapters' shared projection S: frozen, scaled at the start, a learning rate of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.config import schema as configuration
from pfedmma.engine.cohort import Members, PassWidth, train_cohort
from pfedmma.methods import registry
from pfedmma.methods.base import Method
from pfedmma.methods.pfedmma import PRESETS
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.rules import MEAN
from pfedmma.system.errors import UserError
from tests.support.open_clip_prompts import hollow
from tests.support.stacks import SGD, gathered, new_clients, new_members, new_method, new_training

FREEZE = {"freeze": ("shared",)}
STRONG = {"dim": 8, "scale": 0.3, "blocks": 3, "activation": "gelu"}
# At ViT-B/16, eight blocks of r = 32.
S = 8 * (32 * 32 + 32)
PRIVATE = 8 * sum(32 * width + 32 + 32 * width + width for width in (768, 512))


@pytest.fixture(scope="module")
def vit_b_16() -> Backbone:
    return hollow("ViT-B-16")


def is_shared(name: str) -> bool:
    return name.startswith("shared.")


# What travels and what is trained.


@pytest.mark.parametrize(("name", "sent"), [("pfedmma", 0), ("local", 0), ("fedavg_mma", PRIVATE)])
def test_a_frozen_projection_is_neither_sent_nor_trained(vit_b_16: Backbone, name: str, sent: int) -> None:
    method = registry.build(MethodConfig(name, **FREEZE), vit_b_16)
    layout = method.layout
    assert (layout.exchanged_size, layout.trained_size, layout.size) == (sent, PRIVATE, PRIVATE + S)
    assert PRIVATE == 666_112 and S == 8_448
    assert set(layout.frozen) == {n for n in method.shapes if is_shared(n)} and not set(method.exchange) & set(layout.frozen)


def test_other_parts_can_be_frozen(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip, name="fedavg_mma", freeze=("visual.down", "text.down"))
    assert {n.split(".")[2] for n in method.frozen} == {"down"} and len(method.frozen) == 3 * 2 * 2
    assert method.exchange == dict.fromkeys(set(method.shapes) - set(method.frozen), MEAN)
    assert new_method(tiny_clip, freeze=("down+shared",)).layout.exchanged_size == 0


@pytest.mark.parametrize("written", ["", "[]", "null", "none"])
def test_by_default_nothing_is_frozen(tiny_clip: nn.Module, written: str) -> None:
    config = configuration.load(None, [f"method.freeze={written}"]).method
    method = registry.build(config, Backbone.freeze(tiny_clip))
    assert not method.frozen and method.layout == new_method(tiny_clip).layout and not method.learning_rates


# How S begins.


@pytest.mark.parametrize("more", [{}, FREEZE], ids=["trained", "frozen"])
def test_s_begins_scaled_and_all_else_as_it_was(tiny_clip: nn.Module, more: dict[str, Any]) -> None:
    plain, scaled = (new_method(tiny_clip, **more, shared_scale=factor).initial(rng.generator(0, "init")) for factor in (1.0, 4.0))
    for name, tensor in plain.items():
        assert torch.equal(scaled[name], 4.0 * tensor if is_shared(name) else tensor), name
    assert all(bool(plain[name].any()) for name in plain if is_shared(name) and name.endswith("weight"))


# Its learning rate.


def test_the_rate_of_s_is_its_own(tiny_clip: nn.Module) -> None:
    """One step without momentum and decay, p - rate x gradient: with ten times the rate S goes ten times as far, all else as far."""
    optimizer = OptimizerConfig(lr=0.01, momentum=0.0, weight_decay=0.0)
    moved = {}
    for rate in (0.0, 0.1):
        method = new_method(tiny_clip, **STRONG, shared_lr=rate)
        training, members = new_training(method, optimizer), new_members(method, optimizer)
        training = dataclasses.replace(training, batches=dataclasses.replace(training.batches, work=one_step(training.batches.work)))
        before, client = gathered(members), new_clients()[0]
        after = gathered(members, [0])
        training.train([client], after, None, 1)
        moved[rate] = training.layout.views(after[0] - before[0])
    for name, way in moved[0.0].items():
        assert float(way.abs().max()) > 1e-5
        torch.testing.assert_close(moved[0.1][name], 10.0 * way if is_shared(name) else way, rtol=1e-3, atol=1e-6)


def one_step(work: Any) -> Any:
    return dataclasses.replace(work, epochs=1)


# Training.


def trained(clip: nn.Module, clients_per_pass: int, optimizer: OptimizerConfig, **settings: Any) -> tuple[Method, Tensor, Members]:
    """Two rounds of all clients: the method, what they began with [C, P], and how they stand."""
    method = new_method(clip, **STRONG, **settings)
    training, members = new_training(method, optimizer), new_members(method, optimizer)
    before = gathered(members)
    for round_ in (1, 2):
        train_cohort(training, new_clients(), members, round_, PassWidth(clients_per_pass))
    return method, before, members


@pytest.mark.parametrize("optimizer", [SGD, OptimizerConfig(name="adam", lr=0.01, eps=0.1, clip=2.0, state="persist")], ids=["sgd", "adam"])
def test_stacked_is_alone_and_the_frozen_part_is_as_it_began(tiny_clip: nn.Module, optimizer: OptimizerConfig) -> None:
    """To the last bit: no gradient step, no decay and no momentum touch it; and no other client's size of stack."""
    method, before, members = trained(tiny_clip, 5, optimizer, **FREEZE, shared_scale=4.0)
    _, _, single = trained(tiny_clip, 1, optimizer, **FREEZE, shared_scale=4.0)
    start, layout = method.initial(rng.generator(0, "init")), method.layout
    after, alone = layout.views(gathered(members)), layout.views(gathered(single))
    for name, tensor in after.items():
        if is_shared(name):
            assert all(torch.equal(row, start[name]) for row in tensor), name
        else:
            torch.testing.assert_close(tensor, alone[name], rtol=1e-5, atol=2e-6 * float(tensor.abs().max()))
            assert all((row - begun).abs().max() > 1e-4 for row, begun in zip(tensor, layout.views(before)[name], strict=True)), name
    assert members.states.own.width == layout.trained_size
    if optimizer.state == "persist":
        assert members.states.optimizer_rows.width == 2 * layout.trained_size + 1


def test_a_frozen_projection_is_part_of_the_forward_pass(tiny_clip: nn.Module) -> None:
    """S at four times its size gives other gradients."""
    _, _, plain = trained(tiny_clip, 5, SGD, **FREEZE)
    method, _, scaled = trained(tiny_clip, 5, SGD, **FREEZE, shared_scale=4.0)
    private = [method.layout.views(gathered(members))["visual.5.down.weight"] for members in (plain, scaled)]
    assert (private[0] - private[1]).abs().amax(dim=(1, 2)).min() > 1e-4


# Refused.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {**FREEZE, "exchange": ("shared",)},
            r"^method\.freeze: shared stays as it begins, so shared\.4\.weight cannot travel; ",
        ),
        ({**FREEZE, "exchange": ("all",)}, r"^method\.freeze: .* cannot travel"),
        ({"freeze": ("down",), "exchange": ("shared+visual.down",)}, r"^method\.freeze: down .*visual\.4\.down\.weight cannot travel"),
        ({"freeze": ("all",)}, r"^method\.freeze: all leaves nothing to train"),
        ({"freeze": ("shared", "visual", "text")}, r"^method\.freeze: shared\+visual\+text leaves nothing to train"),
        ({"freeze": ("S",)}, r"^method\.freeze: 'S' is no part of the adapters"),
        ({**FREEZE, "shared_lr": 0.1}, r"^method\.shared_lr: S is frozen by method\.freeze=shared and has no learning rate"),
    ],
)
@pytest.mark.parametrize("name", PRESETS)
def test_contradictions_are_refused(tiny_clip: nn.Module, name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        new_method(tiny_clip, name=name, **settings)
    assert "\n" not in str(error.value)


def test_the_rate_of_s_goes_with_other_frozen_parts(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip, freeze=("down",), shared_lr=0.1)
    assert set(method.learning_rates) == {name for name in method.shapes if is_shared(name)}


@pytest.mark.parametrize("setting", ["freeze=shared", "shared_scale=4", "shared_lr=0.1"])
@pytest.mark.parametrize("name", ["promptfl", "zeroshot", "fedotp"])
def test_methods_without_adapters_have_no_s(name: str, setting: str) -> None:
    key = setting.split("=")[0]
    with pytest.raises(UserError, match=rf"^method\.{key}: is about the adapters, which {name} does not have"):
        configuration.load(None, [f"method.name={name}", f"method.{setting}"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("shared_scale=0", "must be greater than 0"),
        ("shared_lr=-1", "must be at least 0"),
        ("private_init=both", "'both' is not known; choose one of shared, own"),
    ],
)
def test_values_that_cannot_be(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^method\.{setting.split('=')[0]}: {message}"):
        configuration.load(None, [f"method.{setting}"])
