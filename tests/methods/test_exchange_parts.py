"""``method.exchange`` and ``method.towers``: which of the adapters there are, and which of them travel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import pfedmma
from pfedmma import rng, train
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.loading import BackboneConfig, create_model
from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.export import main as export
from pfedmma.methods import registry
from pfedmma.methods.adapters.multimodal import AdapterSpec
from pfedmma.methods.pfedmma import PRESETS, exchange_of
from pfedmma.methods.registry import MethodConfig
from pfedmma.records.folder import RunFolder
from pfedmma.run.assembly import assemble
from pfedmma.run.resume import restore
from pfedmma.stack.layout import Layout
from pfedmma.system.errors import UserError
from tests.support import small

# Blocks 11 and 12 of a visual tower, paired with 5 and 6 of a text tower.
SPEC = AdapterSpec(((11, 5), (12, 6)), visual_width=6, text_width=4, dim=2)
# ViT-B/16: 12 blocks of width 768 and 512; 8 of them with adapters of 32.
VIT_B_16 = AdapterSpec(tuple((b, b) for b in range(5, 13)), visual_width=768, text_width=512, dim=32)


def names(*stems: str) -> set[str]:
    return {f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias")}


PARTS = {
    "shared": names("shared.11", "shared.12"),
    "visual.down": names("visual.11.down", "visual.12.down"),
    "visual.up": names("visual.11.up", "visual.12.up"),
    "text.down": names("text.5.down", "text.6.down"),
    "text.up": names("text.5.up", "text.6.up"),
}


# What travels.


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("none", ()),
        ("all", tuple(PARTS)),
        ("shared", ("shared",)),
        ("visual.down", ("visual.down",)),
        ("down.visual", ("visual.down",)),
        ("up", ("visual.up", "text.up")),
        ("down", ("visual.down", "text.down")),
        ("text", ("text.down", "text.up")),
        ("visual", ("visual.down", "visual.up")),
        ("shared+text.up", ("shared", "text.up")),
        ("text.up+shared", ("shared", "text.up")),
        (" shared +  text.up ", ("shared", "text.up")),
        ("[shared, text.up]", ("shared", "text.up")),
        ("shared,text.up", ("shared", "text.up")),
        ("[shared, text.down+text.up]", ("shared", "text.down", "text.up")),
        ("shared+visual+text", tuple(PARTS)),
        ("visual+visual.down", ("visual.down", "visual.up")),
    ],
)
def test_parts_are_named_by_words(what: str, parts: tuple[str, ...]):
    """As they are written on the command line."""
    read = configuration.load(None, [f"method.exchange={what}"]).method.exchange
    assert exchange_of(read, SPEC) == dict.fromkeys(set().union(*(PARTS[part] for part in parts)), "mean")


@pytest.mark.parametrize(
    "what",
    [
        "shared+foo",
        "5",
        "11",
        "weight",
        "shared.weight",
        "",
        "+",
        "shared+",
        "visual.text",
        "shared.down",
        "Shared",
        "none+shared",
        "visual.11",
    ],
)
def test_nonsense_is_refused_and_named(what: str, tiny_clip: nn.Module):
    with pytest.raises(UserError, match=r"^method\.exchange: '.*' is no part of the adapters; write none, all, or parts joined by \+"):
        exchange_of((what,), SPEC)
    with pytest.raises(UserError, match=r"^method\.exchange: "):
        exchange_of(("shared", what), SPEC)
    with pytest.raises(UserError, match=r"^method\.exchange: "):
        registry.build(MethodConfig(exchange=(what,)), Backbone.freeze(tiny_clip))


@pytest.mark.parametrize("written", ["", "[]", "null"])
def test_an_empty_list_is_what_the_name_of_the_method_says(written: str):
    assert configuration.load(None, [f"method.exchange={written}"]).method == MethodConfig()


def test_a_tower_that_has_no_adapters_has_no_part_that_travels(tiny_clip: nn.Module):
    frozen = Backbone.freeze(tiny_clip)
    with pytest.raises(UserError, match=r"method\.exchange: 'text\.up' is no part"):
        registry.build(MethodConfig(towers="visual", exchange=("shared+text.up",)), frozen)
    registry.build(MethodConfig(towers="text", exchange=("shared+text.up",)), frozen)


@pytest.mark.parametrize("name", ["promptfl", "zeroshot", "fedclip"])
def test_other_methods_say_themselves_what_travels(name: str):
    with pytest.raises(UserError, match=rf"method\.exchange: .*{name} says itself"):
        configuration.load(None, [f"method.name={name}", "method.exchange=all"])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_their_strings(name: str, tiny_clip: nn.Module):
    frozen = Backbone.freeze(tiny_clip)
    preset = registry.build(MethodConfig(name=name), frozen)
    assert {other: registry.build(MethodConfig(other, exchange=PRESETS[name]), frozen) == preset for other in PRESETS} == dict.fromkeys(
        PRESETS, True
    )
    wanted = {"pfedmma": 2, "local": 0, "fedavg_mma": None}[name]  # tensors of each of 3 blocks
    assert len(preset.exchange) == (len(preset.shapes) if wanted is None else 3 * wanted)
    assert len(preset.shapes) == 3 * (2 + 4 + 4)


S, DOWN_V, UP_V, DOWN_T, UP_T = 32 * 32 + 32, 768 * 32 + 32, 32 * 768 + 768, 512 * 32 + 32, 32 * 512 + 512


@pytest.mark.parametrize(
    ("what", "parameters"),
    [
        ("shared", 8 * S),
        ("shared+visual.down", 8 * (S + DOWN_V)),
        ("shared+text.up", 8 * (S + UP_T)),
        ("down", 8 * (DOWN_V + DOWN_T)),
        ("all", 8 * (S + DOWN_V + UP_V + DOWN_T + UP_T)),
        ("none", 0),
    ],
)
def test_bytes_at_the_size_of_vit_b_16(what: str, parameters: int):
    layout = Layout(VIT_B_16.shapes(), exchange_of((what,), VIT_B_16))
    assert layout.exchanged_size == parameters
    if what == "shared":
        assert 4 * parameters == 33_792  # bytes in fp32


# One tower alone.

WIDTHS = {"visual": 128, "text": 64}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
CLASSES = ("red circle", "blue star")


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_the_other_tower_has_no_tensors_and_is_open_clips(tower: str, tiny_clip: nn.Module):
    frozen = Backbone.freeze(tiny_clip)
    method = registry.build(MethodConfig(towers=tower, scale=0.5), frozen)
    own = [f"{tower}.{b}" for b in (4, 5, 6)]
    wanted = names(*(f"{name}.{part}" for name in own for part in ("down", "up")), "shared.4", "shared.5", "shared.6")
    assert set(method.shapes) == wanted
    frozen_blocks = {name: method.spec.frozen_blocks(frozen, name) for name in WIDTHS}
    assert frozen_blocks == {name: 4 if name == tower else 6 for name in WIDTHS}  # the other tower runs but once
    assert sum(torch.Size(shape).numel() for shape in method.shapes.values()) == 3 * (2 * 32 * WIDTHS[tower] + 32 + WIDTHS[tower] + S)
    state = {name: tensor.unsqueeze(0) for name, tensor in method.initial(rng.generator(0, "init")).items()}
    prompts = frozen.prompts("a photo of a {}.", CLASSES)
    got = {
        "visual": method.image_features(state, method.image_stem(PIXELS))[0],
        "text": method.text_features(state, method.text_stem(prompts))[0],
    }
    plain = {"visual": tiny_clip.encode_image(PIXELS, normalize=True), "text": tiny_clip.encode_text(prompts.tokens, normalize=True)}
    for name in got:
        assert torch.allclose(got[name], plain[name], atol=1e-5) == (name != tower), name


def test_adapters_of_both_towers_are_those_of_each(tiny_clip: nn.Module):
    """One tower's adapters do not depend on whether the other has some."""
    frozen = Backbone.freeze(tiny_clip)
    both, visual, text = (registry.build(MethodConfig(towers=towers, scale=0.5), frozen) for towers in ("both", "visual", "text"))
    state = {name: tensor.unsqueeze(0) for name, tensor in both.initial(rng.generator(0, "init")).items()}
    part = {method: {name: state[name] for name in method.shapes} for method in (visual, text)}
    prompts = frozen.prompts("a photo of a {}.", CLASSES)
    torch.testing.assert_close(
        visual.image_features(part[visual], visual.image_stem(PIXELS)), both.image_features(state, both.image_stem(PIXELS))
    )
    torch.testing.assert_close(text.text_features(part[text], text.text_stem(prompts)), both.text_features(state, both.text_stem(prompts)))


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_a_run_with_one_tower_trains_and_leaves_as_a_file(tower: str, tmp_path: Path):
    train.main(small.settings(tmp_path / "run", f"method.towers={tower}", f"method.exchange=shared+{tower}.up", "data.clients=4"))
    summary = small.summary(tmp_path / "run")
    width = WIDTHS[tower]
    assert summary["trained_parameters"] == 3 * (S + 2 * 32 * width + 32 + width)
    assert summary["shared_parameters"] == 3 * (S + 32 * width + width)
    assert summary["bytes_per_client_round"] == summary["bytes_down_per_client_round"] == 4 * summary["shared_parameters"]
    run = assemble(configuration.load(tmp_path / "run" / "config.yaml"), World(0, 1, torch.device("cpu")))
    first = run.engine.states.initial.clone()
    restore(run, RunFolder(tmp_path / "run"))
    states, layout, method = run.engine.states, run.engine.training.layout, run.engine.training.method
    client = next(iter(states.own))
    stack = states.gather([client], run.engine.server.shared)
    moved = layout.views((stack[0] != first).float())
    assert all(float(tensor.max()) == 1.0 for name, tensor in moved.items() if name.endswith("weight"))  # all of them were trained
    out = tmp_path / "client.safetensors"
    export([str(tmp_path / "run"), "--client", str(client), "--out", str(out)])
    fresh = create_model(BackboneConfig("tiny", "none"), seed=0)
    model = pfedmma.load_adapter(fresh, out)
    state, prompts = layout.views(stack), run.backbone.prompts("a photo of a {}.", CLASSES)
    images, texts = model.encode_image(PIXELS, normalize=True), model.encode_text(prompts.tokens, normalize=True)
    torch.testing.assert_close(images, method.image_features(state, method.image_stem(PIXELS))[0])
    torch.testing.assert_close(texts, method.text_features(state, method.text_stem(prompts))[0])
    changed = {
        "visual": not torch.allclose(images, fresh.encode_image(PIXELS, normalize=True), atol=1e-4),
        "text": not torch.allclose(texts, fresh.encode_text(prompts.tokens, normalize=True), atol=1e-4),
    }
    assert changed == {name: name == tower for name in changed}
    assert len(list(model.parameters())) == len(method.shapes)


@pytest.mark.parametrize("tower", ["visual", "text"])
def test_the_spec_of_one_tower_follows_from_its_shapes(tower: str, tiny_clip: nn.Module):
    spec = AdapterSpec.for_backbone(Backbone.freeze(tiny_clip), 3, tower, dim=8)
    again = AdapterSpec.from_shapes(spec.shapes())
    assert again.shapes() == spec.shapes()
    assert [again.has(name) for name in ("visual", "text")] == [tower == "visual", tower == "text"]
    assert again.first(tower) == spec.first(tower)
    assert [again.shared_number(tower, b) for b in (4, 5, 6)] == [spec.shared_number(tower, b) for b in (4, 5, 6)]


def test_adapters_on_no_tower_are_none():
    with pytest.raises(ValueError, match="no tower"):
        AdapterSpec.from_shapes({"shared.4.weight": (8, 8), "shared.4.bias": (8,)})
