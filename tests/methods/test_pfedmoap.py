"""pFedMoAP: the gated mixture against plain loops and torch's attention, who is an expert, what travels, and a resumed run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.engine.batches import Stack
from pfedmma.methods import registry
from pfedmma.methods.pfedmoap import PFedMoAP, PFedMoAPConfig
from pfedmma.methods.registry import MethodConfig
from pfedmma.records.checkpoint import manifest, read
from pfedmma.run.assembly import assemble
from pfedmma.stack.layout import Layout
from pfedmma.stack.pool import Pool
from pfedmma.stack.rules import Given, Others
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small

NAMES = ("cat", "red_fish", "fern", "dog", "bird")
# They add the same to all scores of a query, or to the logits of all classes, which a softmax does not see.
UNSEEN = {"gating.k.bias", "gating.v.bias", "gating.o.bias"}
ALL = ["federation.participation=1", "federation.rounds=3", "federation.batch_size=18"]
RUN = ["method.name=pfedmoap", "federation.clients_per_pass=3", "method.pfedmoap.context=2"]


def hollow(name: str) -> Backbone:
    """An open_clip model without memory for its weights: all shapes, in no time."""
    with torch.device("meta"):
        return Backbone.freeze(open_clip.create_model(name, device="meta"), name)


def new_method(clip: nn.Module, **options: Any) -> PFedMoAP:
    return PFedMoAP.from_settings(PFedMoAPConfig(**options), Backbone.freeze(clip, "tiny"))


def drawn(*shape: int, key: object) -> Tensor:
    return torch.randn(shape, generator=rng.generator(0, str(key)))


def new_state(method: PFedMoAP, clients: int) -> dict[str, Tensor]:
    """Every client with its own prompt and gating; a strong gating, so that what it does is far above rounding."""
    states = [method.initial(rng.generator(0, "state", client)) for client in range(clients)]
    strength = {name: 1.0 if name == "prompt" else 3.0 for name in states[0]}
    return {name: strength[name] * torch.stack([state[name] for state in states]) for name in states[0]}


def features(*shape: int, key: object) -> Tensor:
    return F.normalize(drawn(*shape, key=key), dim=-1)


def new_others(method: PFedMoAP, clients: int, experts: int) -> Others:
    shape = method.shapes["prompt"]
    return Others({"prompt": 0.5 * drawn(clients, experts, *shape, key="others")}, torch.ones(clients, experts, dtype=torch.bool))


def stem_of(method: PFedMoAP) -> Any:
    return method.text_stem(method.backbone.prompts("{}", NAMES))


def by_hand(method: PFedMoAP, state: dict[str, Tensor], image: Tensor, texts: list[Tensor], factor: float) -> list[float]:
    """Logits of one image [D] from one client's state; ``texts``: features [K,D], its own and then its experts'; numbers in loops."""
    scale, heads = float(method.backbone.logit_scale), method.settings.heads
    pooled = [float(x) for i, x in enumerate(image) if i % 4 == 0]
    size = len(pooled) // heads

    def project(part: str, x: list[float]) -> list[float]:
        weight, bias = state[f"gating.{part}.weight"].tolist(), state[f"gating.{part}.bias"].tolist()
        return [sum(w * y for w, y in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]

    query = project("q", pooled)
    logits = []
    for label in range(len(texts[0])):
        keys = [[float(x) for i, x in enumerate(text[label]) if i % 4 == 0] for text in texts]
        mixed: list[float] = []
        for head in range(heads):
            part = range(head * size, (head + 1) * size)
            scores = [math.exp(factor * sum(query[i] * project("k", key)[i] for i in part)) for key in keys]
            shares = [score / sum(scores) for score in scores]
            mixed += [sum(share * project("v", key)[i] for share, key in zip(shares, keys, strict=True)) for i in part]
        answer = project("o", mixed)
        second = sum(z * h for z, h in zip(pooled, answer, strict=True))
        logits.append(scale * (method.settings.mix * float(image @ texts[0][label]) + second))
    return logits


def test_counts_and_bytes_at_vit_b_16() -> None:
    method = registry.build(MethodConfig(name="pfedmoap"), hollow("ViT-B-16"))
    layout = Layout(method.shapes, method.exchange)
    assert layout.shapes["prompt"] == (16, 512)
    assert layout.exchanged_size * 4 == 32_768  # bytes up
    assert layout.size - layout.exchanged_size == 4 * (128 * 128 + 128) == 66_048
    assert layout.exchanged_size * 4 * (1 + method.reads) == 327_680  # bytes down, once there are 9 others


def test_published_settings() -> None:
    config = configuration.load(None, ["method.name=pfedmoap"])
    assert (config.optimizer.lr, config.optimizer.name) == (2e-3, "sgd")
    assert config.method.own == PFedMoAPConfig(experts=10, heads=8, factor=10.0, mix=0.5, gating_lr=0.01)


def test_the_gating_starts_as_torch_linears_do(tiny_clip) -> None:
    state = new_method(tiny_clip).initial(rng.generator(0, "init"))
    assert state["prompt"].std().item() == pytest.approx(0.02, rel=0.15)
    numbers = torch.cat([tensor.flatten() for name, tensor in state.items() if name.startswith("gating.")])
    assert numbers.abs().max() <= 0.25  # 1 / sqrt(16)
    assert numbers.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.05)


def test_two_experts_by_hand(tiny_clip) -> None:
    method = new_method(tiny_clip, heads=4, factor=3.0, mix=0.7)
    state = new_state(method, 2)
    images, texts, experts = features(2, 3, 64, key="images"), features(2, 5, 64, key="texts"), features(2, 2, 5, 64, key="experts")
    seen = state | {"experts": experts[..., ::4], "present": torch.ones(2, 2, dtype=torch.bool)}
    logits = method.logits(seen, images, texts)
    for c in range(2):
        own = {name: tensor[c] for name, tensor in state.items()}
        wanted = [by_hand(method, own, image, [texts[c], *experts[c]], factor=3.0) for image in images[c]]
        torch.testing.assert_close(logits[c], torch.tensor(wanted), rtol=1e-5, atol=1e-4)
        # The test can fail: the customary factor and an even mixture are other numbers.
        for factor in (0.0, 0.5):
            other = torch.tensor([by_hand(method, own, image, [texts[c], *experts[c]], factor=factor) for image in images[c]])
            assert (logits[c] - other).abs().max() > 1e-2


def test_the_customary_factor_gives_torchs_attention(tiny_clip) -> None:
    """Each class is a sequence of M keys, and every image a query."""
    method = new_method(tiny_clip, heads=4, factor=0.5)  # 1 / sqrt(16 / 4)
    state = new_state(method, 1)
    queries, keys = drawn(1, 3, 16, key="queries"), drawn(1, 4, 5, 16, key="keys")
    present = torch.tensor([[True, True, False, True]])
    got = method.mixture(state, queries, keys, present)[0]
    weight, bias = {}, {}
    for part in "qkvo":
        weight[part], bias[part] = state[f"gating.{part}.weight"][0], state[f"gating.{part}.bias"][0]
    sequences = keys[0]  # [M,K,G]: torch's (length, batch, width)
    attended, _ = F.multi_head_attention_forward(
        queries[0].unsqueeze(1).expand(-1, 5, -1), sequences, sequences, 16, 4,
        in_proj_weight=torch.cat([weight[p] for p in "qkv"]), in_proj_bias=torch.cat([bias[p] for p in "qkv"]),
        bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, out_proj_weight=weight["o"], out_proj_bias=bias["o"],
        key_padding_mask=~present.expand(5, -1),
    )  # fmt: skip
    torch.testing.assert_close(got, torch.einsum("bg,bkg->bk", queries[0], attended), rtol=1e-5, atol=1e-5)


def test_a_gating_that_answers_nothing_leaves_clip_as_it_comes(tiny_clip) -> None:
    """With the template's own words as context, no output and mix 1, against open_clip's zero-shot logits; twice that with mix 2."""
    pixels = drawn(3, 3, 32, 32, key="pixels")
    tokens = Backbone.freeze(tiny_clip, "tiny").prompts("a photo of a {}.", NAMES).tokens
    images, texts = tiny_clip.encode_image(pixels, normalize=True), tiny_clip.encode_text(tokens, normalize=True)
    wanted = tiny_clip.logit_scale.exp() * images @ texts.T
    for mix in (1.0, 2.0):
        method = new_method(tiny_clip, words="a photo of a", mix=mix)
        state = new_state(method, 2)
        for part in "vo":
            state[f"gating.{part}.weight"].zero_()
            state[f"gating.{part}.bias"].zero_()
        stem = stem_of(method)
        for others, factor in ((None, 1.0), (new_others(method, 2, 3), mix)):
            seen = state | method.fixed(state, Given(others), stem)
            logits = method.logits(seen, method.image_features(seen, method.image_stem(pixels).repeat(2)), method.text_features(seen, stem))
            assert logits.shape == (2, 3, 5)
            torch.testing.assert_close(logits, (factor * wanted).expand(2, -1, -1), rtol=1e-5, atol=1e-4)


def test_experts_are_the_features_of_the_others_prompts(tiny_clip) -> None:
    """Also where several clients read the same prompt, or one reads it twice."""
    method = new_method(tiny_clip)
    state, stem, others = new_state(method, 3), stem_of(method), new_others(method, 3, 4)
    others.tensors["prompt"][1, :2] = others.tensors["prompt"][0, 2:]
    others.tensors["prompt"][2, 3] = others.tensors["prompt"][2, 0]
    fixed = method.fixed(state, Given(others), stem)
    assert fixed["experts"].shape == (3, 4, 5, 16) and torch.equal(fixed["present"], others.present)
    for expert in range(4):
        alone = method.text_features({"prompt": others.tensors["prompt"][:, expert]}, stem)
        torch.testing.assert_close(fixed["experts"][:, expert], alone[..., ::4], rtol=1e-5, atol=1e-6)
    assert (fixed["experts"][0, 0] - fixed["experts"][0, 1]).abs().max() > 1e-4


def test_the_order_of_experts_does_not_matter(tiny_clip) -> None:
    method = new_method(tiny_clip)
    state, experts = new_state(method, 2), features(2, 4, 5, 16, key="experts")
    images, texts = features(2, 3, 64, key="images"), features(2, 5, 64, key="texts")
    present = torch.tensor([[True, True, False, True], [True, False, False, False]])
    order = torch.tensor([2, 0, 3, 1])
    wanted = method.logits(state | {"experts": experts, "present": present}, images, texts)
    got = method.logits(state | {"experts": experts[:, order], "present": present[:, order]}, images, texts)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_absent_experts_influence_nothing(tiny_clip) -> None:
    """Neither logits nor gradients; a client with none answers to the bit as without the others."""
    method = new_method(tiny_clip)
    images, texts = features(3, 2, 64, key="images"), features(3, 5, 64, key="texts")
    experts = features(3, 3, 5, 16, key="experts")
    present = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    results = []
    for fill in (1.0, 50.0):
        state = {name: tensor.requires_grad_() for name, tensor in new_state(method, 3).items()}
        seen = torch.where(present[:, :, None, None], experts, fill * experts)
        logits = method.logits(state | {"experts": seen, "present": present}, images, texts)
        gating = [tensor for name, tensor in state.items() if name != "prompt"]
        results.append((logits, torch.autograd.grad(logits.square().sum(), gating)))
    (logits, grads), (poisoned, poisoned_grads) = results
    torch.testing.assert_close(poisoned, logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(poisoned_grads, grads, rtol=1e-5, atol=1e-5)
    plain = method.logits(new_state(method, 3), images, texts)
    assert torch.equal(logits[2], plain[2])
    assert (logits[:2] - plain[:2]).abs().amax(dim=(1, 2)).min() > 0.1
    assert all(not grad[2].any() and grad[:2].isfinite().all() for grad in grads)
    # One expert beside padding is as one expert alone.
    alone = method.logits(new_state(method, 3) | {"experts": experts[:, :1], "present": present[:, :1]}, images, texts)
    torch.testing.assert_close(logits[1], alone[1], rtol=1e-6, atol=1e-5)


def test_no_gradient_reaches_the_experts(tiny_clip) -> None:
    """And that of a client's prompt and gating is what finite differences say (fp32: to some percent)."""
    method = new_method(tiny_clip)
    state = {name: tensor.requires_grad_() for name, tensor in new_state(method, 1).items()}
    others, stem = new_others(method, 1, 2), stem_of(method)
    others.tensors["prompt"].requires_grad_()
    seen = state | method.fixed(state, Given(others), stem)
    assert not seen["experts"].requires_grad
    images, labels = features(1, 4, 64, key="images"), torch.tensor([[0, 1, 2, 3]])

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        return method.loss(tensors, images, method.text_features(tensors, stem), labels, torch.full((1, 4), 0.25)).sum()

    for name in state:
        (gradient,) = torch.autograd.grad(loss(seen), [state[name]])
        step = gradient / gradient.norm() * (1e-3 if name == "prompt" else 3e-2)
        with torch.no_grad():
            change = loss(seen | {name: state[name] + step}) - loss(seen | {name: state[name] - step})
        expected = 2.0 * float((gradient * step).sum())
        if name in UNSEEN:
            assert gradient.abs().max() < 1e-5
        else:
            assert float(change) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 0}, "experts: must be at least 1, not 0"),
        ({"heads": 0}, "heads: must be at least 1, not 0"),
        ({"mix": -1.0}, "mix: must be at least 0, not -1"),
        ({"factor": float("nan")}, "factor: must be at least 0, not nan"),
        ({"gating_lr": -1.0}, "gating_lr: must be at least 0, not -1"),
        ({"heads": 3}, r"^method\.pfedmoap\.heads: 3 do not divide the 16 numbers"),
    ],
)
def test_settings_that_cannot_be(tiny_clip, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        new_method(tiny_clip, **options)


def test_prompt_and_gating_have_learning_rates_of_their_own(tiny_clip, tmp_path: Path) -> None:
    """One SGD step through the trainer, against the gradient of the loss by hand."""
    more = [*RUN, "optimizer.lr=0.3", "method.pfedmoap.gating_lr=0.07", "optimizer.momentum=0", "optimizer.weight_decay=0"]
    run = assemble(configuration.load(None, small.settings(tmp_path, *more)), World(0, 1, torch.device("cpu")))
    training, server, states = run.engine.training, run.engine.server, run.engine.states
    server.pool.rows = {i: 0.5 * drawn(server.shared.numel(), key=i) for i in range(3)}
    client = dataclasses.replace(run.engine.clients[0], train=run.engine.clients[0].train[:4], labels=run.engine.clients[0].labels[:4])
    start, params = (states.gather([0], server.shared) for _ in range(2))
    given = Given(server.others([0]))
    training.train([client], params, states.gather_optimizer([0]), 1, given)

    batches, method, stem = training.batches, training.method, training.forward.text_stem
    batch = batches.on_device([client], batches.stage(Stack([client], 1), [torch.arange(4)], 0))
    assert isinstance(batch.images, Tensor)  # pixels, as they are augmented
    state = {name: view.clone().requires_grad_() for name, view in training.layout.views(start).items()}
    seen = state | method.fixed(state, given, stem)
    images, texts = method.image_features(seen, method.image_stem(batch.images)), method.text_features(seen, stem)
    gradients = torch.autograd.grad(method.loss(seen, images, texts, batch.labels, batch.weights).sum(), list(state.values()))
    ends = training.layout.views(params)
    for (name, tensor), gradient in zip(state.items(), gradients, strict=True):
        rate = 0.3 if name == "prompt" else 0.07
        torch.testing.assert_close(ends[name] - tensor, -rate * gradient, rtol=1e-3, atol=1e-6)
        assert name in UNSEEN or (rate * gradient).abs().max() > 3e-5, name


def test_what_clients_are_sent(tmp_path: Path) -> None:
    """All 7 clients take part: nothing to read in round 1, then every client reads as many others as there are, or as it may."""
    prompt = 2 * 64 * 4  # bytes
    for experts, sent in ((10, 7), (3, 3), (1, 1)):
        folder = tmp_path / str(experts)
        main(small.settings(folder, *RUN, *ALL, f"method.pfedmoap.experts={experts}"))
        comm = [row["comm"] for row in small.metrics(folder)]
        assert [row["uplink_bytes"] for row in comm] == [7 * prompt] * 3
        assert [row["downlink_bytes"] for row in comm] == [7 * prompt, 7 * prompt * sent, 7 * prompt * sent]
        assert {row["shared_parameters"] for row in comm} == {2 * 64}
        assert {row["collectives"] for row in comm} == {1}
        total = small.summary(folder)["comm"]
        assert (total["uplink_bytes"], total["downlink_bytes"]) == (21 * prompt, 7 * prompt * (1 + 2 * sent))


def test_the_pool_holds_what_the_participants_sent_last(tmp_path: Path) -> None:
    """3 of 7 take part in a round; the server's prompt is their weighted mean."""
    main(small.settings(tmp_path, *RUN, "federation.rounds=2", "checkpoint.every=1", "checkpoint.keep=2"))
    rows = small.metrics(tmp_path)
    pools, root = [], tmp_path / "checkpoints"
    for round_ in (1, 2):
        tensors = {row.kind: row.tensor for row in read.read_rows(root, manifest.read_manifest(manifest.folder_of(root, round_)), set())}
        pools.append({int(name.split(".")[2]): tensor for name, tensor in tensors.items() if name.startswith("server.pool.")})
        sizes = {i: client["train_samples"] for i, client in enumerate(small.summary(tmp_path)["per_client"])}
        cohort = rows[round_ - 1]["clients"]
        mean = sum(sizes[i] * pools[-1][i] for i in cohort) / sum(sizes[i] for i in cohort)
        torch.testing.assert_close(tensors["server.shared"], mean, rtol=1e-5, atol=1e-7)
    first, second = (set(row["clients"]) for row in rows)
    assert set(pools[0]) == first and set(pools[1]) == first | second
    for i in first - second:
        assert torch.equal(pools[1][i], pools[0][i])


def test_a_client_answers_with_what_it_has_after_its_local_training(tmp_path: Path) -> None:
    """Who takes part in round 3: with the experts that the server had after round 2. Who does not: with those that it has now."""
    main(small.settings(tmp_path, *RUN, "federation.rounds=3", "checkpoint.every=1", "checkpoint.keep=3", "method.pfedmoap.experts=3"))
    root = tmp_path / "checkpoints"
    pools, shared = {}, {}
    for round_ in (2, 3):
        rows = read.read_rows(root, manifest.read_manifest(manifest.folder_of(root, round_)), set())
        tensors = {row.kind.removeprefix("server."): row.tensor for row in rows}
        pools[round_] = Pool()
        pools[round_].rows = {int(name.removeprefix("pool.")): row for name, row in tensors.items() if name.startswith("pool.")}
        shared[round_] = tensors["shared"]
    last = read.newest_good(root)
    assert last is not None and last.round == 3
    took_part = set(small.metrics(tmp_path)[-1]["clients"])
    for client in range(7):
        round_ = 2 if client in took_part else 3
        wanted = pools[round_].nearest([client], shared[round_], 2)
        found = read.client_answer(root, last, client).others["prompt"]
        assert wanted is not None and torch.equal(found.flatten(1), wanted[0][0])
        other = pools[5 - round_].nearest([client], shared[5 - round_], 2)
        assert other is not None and not torch.equal(found.flatten(1), other[0][0])


def test_a_resumed_run_goes_on_exactly(tmp_path: Path) -> None:
    """With the pool: its experts in rounds 3 and 4 were sent in rounds 1 and 2."""
    options = [*RUN, "checkpoint.every=2", "method.pfedmoap.mix=0.2", "resume=auto"]
    main(small.settings(tmp_path / "straight", *options, "federation.rounds=4"))
    for rounds in (2, 4):
        main(small.settings(tmp_path / "paused", *options, f"federation.rounds={rounds}"))
    assert small.timeless(small.metrics(tmp_path / "paused")) == small.timeless(small.metrics(tmp_path / "straight"))
    got, wanted = small.final_tensors(tmp_path / "paused"), small.final_tensors(tmp_path / "straight")
    assert got.keys() == wanted.keys() and any(name.startswith("server.pool.") for name in wanted)
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    totals = [small.timeless(small.summary(tmp_path / name)["comm"]) for name in ("paused", "straight")]
    for total in totals:
        del total["bookkeeping"]  # of each part of the run
    assert totals[0] == totals[1]
