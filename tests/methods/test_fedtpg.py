"""FedTPG: its size and start, its network by torch's own modules, what a client's own names change, and its zero-shot limit."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.config import schema
from pfedmma.data.sources.base import GENERIC_TEMPLATE
from pfedmma.engine.cohort import PassWidth, train_cohort
from pfedmma.methods import registry
from pfedmma.methods.fedtpg import FedTPG, FedTPGConfig, NamedStem
from pfedmma.methods.registry import MethodConfig
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import UNIFORM, Given, State
from pfedmma.system.errors import UserError
from tests.support import stacks
from tests.support.open_clip_prompts import NAMES, hollow, text_features

HELD = torch.tensor([[True, False, True], [False, True, False]])


def new_method(clip: nn.Module, **options: Any) -> FedTPG:
    return FedTPG.from_settings(FedTPGConfig(**options), Backbone.freeze(clip, "tiny"))


def new_state(method: FedTPG, clients: int = 2) -> dict[str, Tensor]:
    """Clients of their own, no number of them zero."""
    states = []
    for client in range(clients):
        generator = rng.generator(0, "state", client)
        start = method.initial(generator)
        states.append({name: x + 0.1 * torch.randn(x.shape, generator=generator) for name, x in start.items()})
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def stem_of(method: FedTPG, names: tuple[str, ...] = NAMES) -> NamedStem:
    return method.text_stem(method.backbone.prompts(GENERIC_TEMPLATE, names))


def names_of(clip: nn.Module, names: tuple[str, ...]) -> Tensor:
    """[K,D] by open_clip alone: neither template nor full stop."""
    tokens = Backbone.freeze(clip, "tiny").tokenizer([name.replace("_", " ") for name in names])
    return clip.encode_text(tokens, normalize=True).detach()


def images(clients: int = 2) -> Tensor:
    return F.normalize(torch.randn(clients, 4, 64, generator=rng.generator(0, "images")), dim=-1)


# Size and start --------------------------------------------------------------------------------------------------------------------------


def test_sizes_at_vit_b_16() -> None:
    method = registry.build(MethodConfig("fedtpg"), hollow("ViT-B-16"))
    layout = Layout(method.shapes, method.exchange)
    attention = 786_432 + 1_536 + 262_144 + 512
    gated = 2_097_152 + 4_096 + 1_048_576 + 512
    assert layout.size == layout.exchanged_size == 2_048 + 3 * 1_024 + attention + gated == 4_206_080
    assert layout.columns == {UNIFORM: slice(0, 4_206_080)} and 4 * layout.exchanged_size == 16_824_320


def test_widths_of_text_and_embedding_may_differ() -> None:
    """The names, their norm and the inputs of k and v have the latter."""
    backbone = hollow("ViT-B-16")
    backbone = dataclasses.replace(backbone, visual=backbone.visual)
    backbone.visual.projection = torch.empty(768, 640, device="meta")
    shapes = FedTPG.from_settings(FedTPGConfig(), backbone).shapes
    assert shapes["name_norm.weight"] == (640,) and shapes["k.weight"] == shapes["v.weight"] == (512, 640)
    assert shapes["q.weight"] == shapes["o.weight"] == (512, 512) and shapes["queries"] == (4, 512)


def test_initial_values() -> None:
    state = registry.build(MethodConfig("fedtpg"), hollow("ViT-B-16")).initial(rng.generator(0, "init"))
    assert state["queries"].std() == pytest.approx(0.02, rel=0.1)
    bounds = {"q.weight": 0.0541, "k.weight": 0.0541, "v.weight": 0.0541, "o.weight": 0.0442, "expand.weight": 0.0442}
    bounds |= {"expand.bias": 0.0442, "contract.weight": 0.0221, "contract.bias": 0.0221}
    for name, bound in bounds.items():
        assert state[name].abs().max() == pytest.approx(bound, rel=0.01), name
        assert state[name].std() == pytest.approx(bound / math.sqrt(3), rel=0.1), name
    for name in state.keys() - bounds.keys() - {"queries"}:
        assert bool((state[name] == float(name.endswith("norm.weight"))).all()), name


def test_settings() -> None:
    found = schema.load(None, ["method.name=fedtpg"]).optimizer
    assert (found.name, found.lr, found.momentum, found.weight_decay, found.state) == ("sgd", 3e-3, 0.9, 1e-5, "persist")
    for option, message in (({"context": 0}, "context: must be at least 1"), ({"names": "base"}, "names: 'base' is not known")):
        with pytest.raises(UserError, match=message):
            FedTPGConfig(**option)


# The network -----------------------------------------------------------------------------------------------------------------------------


def torchs_context(state: State, client: int, names: Tensor) -> Tensor:
    """One client's network out of torch's own modules: [K,D] -> [n,W]."""
    own = {name: tensor[client] for name, tensor in state.items()}
    width = own["queries"].shape[1]
    attention = nn.MultiheadAttention(width, 4, batch_first=True)
    packed = {f"in_proj_{part}": torch.cat([own[f"{x}.{part}"] for x in "qkv"]) for part in ("weight", "bias")}
    attention.load_state_dict({**packed, "out_proj.weight": own["o.weight"], "out_proj.bias": own["o.bias"]})

    def normed(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), own[f"{name}.weight"], own[f"{name}.bias"])

    rows = normed("name_norm", names)[None]
    h = attention(normed("query_norm", own["queries"])[None], rows, rows)[0][0]
    a, b = F.linear(normed("context_norm", h), own["expand.weight"], own["expand.bias"]).chunk(2, dim=-1)
    return h + F.linear(a * F.gelu(b), own["contract.weight"], own["contract.bias"])


@torch.no_grad()
def test_the_network_is_that_of_torchs_modules_on_the_bare_names(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip)
    state, stem = new_state(method), stem_of(method)
    torch.testing.assert_close(stem.names, names_of(tiny_clip, NAMES), rtol=1e-5, atol=1e-6)
    context, texts = method.context(state, stem.names), method.text_features(state, stem)
    for client in range(2):
        wanted = torchs_context(state, client, stem.names)
        torch.testing.assert_close(context[client], wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(texts[client], text_features(tiny_clip, NAMES, wanted), rtol=0, atol=1e-5)
    assert (context[0] - context[1]).abs().max() > 0.1


@torch.no_grad()
def test_a_client_reads_the_names_of_its_own_classes_alone(tiny_clip: nn.Module) -> None:
    """As if there were no others; without a mask, all."""
    method = new_method(tiny_clip)
    state, names = new_state(method), stem_of(method).names
    assert method.fixed(state, Given(held=HELD), stem_of(method))["held"] is HELD
    assert method.fixed(state, Given(), stem_of(method)) == {}
    own = method.context({**state, "held": HELD}, names)
    for client in range(2):
        torch.testing.assert_close(own[client], torchs_context(state, client, names[HELD[client]]), rtol=1e-4, atol=1e-5)
    assert (own - method.context(state, names)).abs().amax(dim=(1, 2)).min() > 1e-3


@torch.no_grad()
def test_order_and_number_of_names_do_not_matter(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip)
    state, names = new_state(method), stem_of(method).names
    wanted = method.context(state, names)
    for others in (names[[2, 0, 1]], torch.cat([names, names])):
        torch.testing.assert_close(method.context(state, others), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_of_one_name_all_queries_find_the_same(tiny_clip: nn.Module) -> None:
    method = new_method(tiny_clip)
    context = method.context(new_state(method), stem_of(method).names[:1])
    assert context.shape == (2, 4, 64)
    torch.testing.assert_close(context, context[:, :1].expand_as(context), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_silent_network_is_clip_with_placeholders(tiny_clip: nn.Module) -> None:
    """Output and the gated layer's weight at zero, its bias the embedding of "X": zero-shot with "X X X X {}."."""
    method = new_method(tiny_clip)
    state = new_state(method)
    x = tiny_clip.token_embedding(torch.tensor(method.backbone.tokenizer.encode("X"))).expand(2, -1)
    state |= {name: torch.zeros_like(state[name]) for name in ("o.weight", "o.bias", "contract.weight")} | {"contract.bias": x}
    stem = stem_of(method)
    tokens = method.backbone.prompts("X X X X {}.", NAMES).tokens
    wanted = tiny_clip.logit_scale.exp() * images() @ tiny_clip.encode_text(tokens, normalize=True).T
    torch.testing.assert_close(method.logits(state, images(), method.text_features(state, stem)), wanted, rtol=1e-5, atol=1e-5)


# Classes ---------------------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_loss_is_over_the_clients_own_classes_renumbered(tiny_clip: nn.Module) -> None:
    """Of one class there is nothing to tell apart, and its loss is 0."""
    method = new_method(tiny_clip)
    state, stem = {**new_state(method), "held": HELD}, stem_of(method)
    texts, labels = method.text_features(state, stem), torch.tensor([[0, 2, 2, 0], [1, 1, 1, 1]])
    found = method.loss(state, images(), texts, labels, torch.full((2, 4), 0.25))
    own = tiny_clip.logit_scale.exp() * images()[0] @ texts[0][HELD[0]].T
    wanted = torch.stack([F.cross_entropy(own, torch.tensor([0, 1, 1, 0])), torch.zeros(())])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    every = method.loss(new_state(method), images(), texts, labels, torch.full((2, 4), 0.25))
    assert (every - found).min() > 1e-3


@dataclass(frozen=True)
class Watched(FedTPG):
    """``seen``: how many clients at a time, and what they are given of classes."""

    seen: list[Any] = field(default_factory=list)

    def fixed(self, state: State, given: Given, text_stem: NamedStem) -> dict[str, Tensor]:
        self.seen.append((len(next(iter(state.values()))), given.held))
        return super().fixed(state, given, text_stem)


@pytest.mark.parametrize("names", ["own", "all"])
def test_clients_train_with_their_own_names_and_are_tested_as_one_model(tiny_clip: nn.Module, names: str) -> None:
    """What five clients answer with is the server's: one of them is tested for all, on all names of each of the two sets."""
    method = Watched(Backbone.freeze(tiny_clip, "tiny"), FedTPGConfig(names=names), 4)
    clients, members = stacks.new_clients(cameras=False, tested=10), stacks.new_members(method, trained=[])
    train_cohort(stacks.new_training(method), clients, members, 1, PassWidth(5))
    ((count, held),) = method.seen
    assert count == 5 and (held is None) == (names == "all")
    if held is not None:
        assert sorted(held.tolist()) == sorted([[label in client.classes for label in range(5)] for client in clients])
    method.seen.clear()
    evaluator = stacks.new_evaluator(method, clients, stacks.in_turn(10), torch.arange(6) % 3)
    table = evaluator.table(method, members.answers(), clients)
    assert method.seen == [(1, None), (1, None)]
    assert torch.equal(table[:, 1:3], table[:1, 1:3].expand(5, -1))
