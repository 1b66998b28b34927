"""FedCLIP: the attention on image features, its two losses against plain loops, padding, and the server's plain mean."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.engine.arrivals import Arrived
from pfedmma.engine.rounds import Engine
from pfedmma.methods import registry
from pfedmma.methods.fedclip import FedCLIP, FedCLIPConfig
from pfedmma.methods.registry import MethodConfig
from pfedmma.run.assembly import assemble
from pfedmma.stack.layout import Layout
from pfedmma.stack.rules import UNIFORM
from pfedmma.system.errors import UserError
from pfedmma.train import main
from tests.support import small

NAMES = ("cat", "red_fish", "fern", "dog", "bird")
LABELS = torch.tensor([[0, 3, 3, 1], [2, 2, 4, 0]])  # two images of one class in each batch


def new_method(clip: nn.Module, loss: str = "infonce") -> FedCLIP:
    return FedCLIP.from_settings(FedCLIPConfig(loss), Backbone.freeze(clip, "tiny"))


def drawn(*shape: int, key: str) -> Tensor:
    return torch.randn(shape, generator=rng.generator(0, key))


def features(*shape: int, key: str) -> Tensor:
    return F.normalize(drawn(*shape, key=key), dim=-1)


def new_state(method: FedCLIP, clients: int) -> dict[str, Tensor]:
    """Clients of their own, and strong weights, so that what they do is far above rounding."""
    states = [method.initial(rng.generator(0, "state", client)) for client in range(clients)]
    return {name: 5.0 * torch.stack([state[name] for state in states]) for name in states[0]}


def infonce_by_hand(scale: float, images: Tensor, texts: Tensor, labels: list[int]) -> float:
    """One client's loss, pair by pair: images [B,D], class texts [K,D]."""
    logits = [[scale * float(image @ texts[label]) for label in labels] for image in images]
    total = 0.0
    for i in range(len(labels)):
        row, column = logits[i], [line[i] for line in logits]
        total += sum(math.log(sum(math.exp(x) for x in line)) - line[i] for line in (row, column)) / 2
    return total / len(labels)


def new_engine(folder: Path, *more: str) -> Engine:
    """Two clients of 5 and 15 images."""
    settings = small.settings(folder, "method.name=fedclip", "data.clients=2", "federation.participation=1", *more)
    engine = assemble(configuration.load(None, settings), World(0, 1, torch.device("cpu"))).engine
    pairs = zip(engine.clients, (5, 15), strict=True)
    engine.clients = tuple(dataclasses.replace(client, train=client.train[:n], labels=client.labels[:n]) for client, n in pairs)
    return engine


def test_counts_and_bytes_at_vit_b_16() -> None:
    with torch.device("meta"):
        backbone = Backbone.freeze(open_clip.create_model("ViT-B-16", device="meta"), "ViT-B-16")
    method = registry.build(MethodConfig(name="fedclip"), backbone)
    layout = Layout(method.shapes, method.exchange)
    assert layout.size == layout.exchanged_size == 2 * (512 * 512 + 512) == 525_312
    assert layout.exchanged_size * 4 == 2_101_248
    assert layout.columns == {UNIFORM: slice(0, 525_312)}


def test_published_settings() -> None:
    optimizer = configuration.load(None, ["method.name=fedclip"]).optimizer
    assert (optimizer.name, optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == ("adam", 5e-5, 0.9, 0.98, 0.2)
    assert FedCLIPConfig().loss == "infonce"


def test_an_unknown_loss() -> None:
    with pytest.raises(UserError, match="loss: 'mse' is not known; choose one of infonce, ce"):
        FedCLIPConfig("mse")


def test_the_linears_start_as_torchs(tiny_clip) -> None:
    for tensor in new_method(tiny_clip).initial(rng.generator(0, "init")).values():
        assert tensor.abs().max() <= 0.125  # 1 / sqrt(64)
        assert tensor.std().item() == pytest.approx(0.125 / math.sqrt(3), rel=0.2)


def test_features_are_those_of_torchs_modules(tiny_clip) -> None:
    method, pixels = new_method(tiny_clip), drawn(4, 3, 32, 32, key="pixels")
    state = new_state(method, 2)
    got = method.image_features(state, method.image_stem(pixels))  # two images a client
    raw = tiny_clip.encode_image(pixels, normalize=False)
    for client in range(2):
        hidden, gate = nn.Linear(64, 64), nn.Linear(64, 64)
        for module, name in ((hidden, "hidden"), (gate, "gate")):
            module.load_state_dict({part: state[f"{name}.{part}"][client] for part in ("weight", "bias")})
        own = raw[2 * client : 2 * client + 2]
        adapter = nn.Sequential(hidden, nn.Tanh(), gate, nn.Softmax(dim=1))
        wanted = F.normalize(adapter(own) * own, dim=-1).detach()
        torch.testing.assert_close(got[client], wanted, rtol=1e-5, atol=1e-6)
        assert (got[client] - F.normalize(own, dim=-1)).abs().max() > 0.1


def test_an_even_attention_is_clip_as_it_comes(tiny_clip) -> None:
    """Weights of zero: f / 64, whose direction is f's; against open_clip's zero-shot logits."""
    method, pixels = new_method(tiny_clip), drawn(3, 3, 32, 32, key="pixels")
    state = {name: torch.zeros_like(tensor) for name, tensor in new_state(method, 2).items()}
    prompts = method.backbone.prompts("a photo of a {}.", NAMES)
    images = method.image_features(state, method.image_stem(pixels).repeat(2))
    texts = method.text_features(state, method.text_stem(prompts))
    wanted = F.normalize(tiny_clip.encode_image(pixels), dim=-1) @ F.normalize(tiny_clip.encode_text(prompts.tokens), dim=-1).T
    wanted = (tiny_clip.logit_scale.exp() * wanted).expand(2, -1, -1)
    torch.testing.assert_close(method.logits(state, images, texts), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 4), (4, 2), (3, 1)])
def test_infonce_by_hand_and_without_padding(tiny_clip, sizes: tuple[int, int]) -> None:
    """Padding counts neither as a row nor as a column, whatever stands there; gradients too."""
    method = new_method(tiny_clip)
    texts, clean = features(5, 64, key="texts").expand(2, -1, -1), features(2, 4, 64, key="images")
    real = torch.arange(4) < torch.tensor(sizes)[:, None]
    weights = real / real.sum(dim=1, keepdim=True)
    results = []
    for images, labels in ((clean, LABELS), (torch.where(real[..., None], clean, -clean.flip(1)), LABELS.where(real, (LABELS + 1) % 5))):
        images = images.clone().requires_grad_()
        losses = method.loss({}, images, texts, labels, weights)
        (gradient,) = torch.autograd.grad(losses.sum(), images)
        results.append((losses.detach(), gradient))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    scale = float(method.backbone.logit_scale)
    wanted = [infonce_by_hand(scale, clean[c, :n], texts[c], LABELS[c, :n].tolist()) for c, n in enumerate(sizes)]
    torch.testing.assert_close(results[0][0], torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    assert results[0][1].isfinite().all() and not results[0][1][~real].any()
    assert all((loss > 0.1) == (n > 1) for loss, n in zip(wanted, sizes, strict=True))  # one image alone has nothing to be told from


def test_cross_entropy_is_over_all_classes(tiny_clip) -> None:
    method = new_method(tiny_clip, "ce")
    images, texts = features(2, 4, 64, key="images"), features(2, 5, 64, key="texts")
    losses = method.loss({}, images, texts, LABELS, torch.full((2, 4), 0.25))
    for client in range(2):
        logits = method.backbone.logit_scale * images[client] @ texts[client].T
        torch.testing.assert_close(losses[client], F.cross_entropy(logits, LABELS[client]), rtol=1e-5, atol=1e-5)
    other = new_method(tiny_clip).loss({}, images, texts, LABELS, torch.full((2, 4), 0.25))
    assert (losses - other).abs().min() > 0.05


def test_the_servers_mean_is_plain(tmp_path: Path) -> None:
    """5 and 15 images: the mean of what the two send is not the one weighted 1 : 3. Losses are still weighted."""
    engine = new_engine(tmp_path)
    shared = drawn(2, engine.training.layout.exchanged_size, key="shared")
    both = engine.training_here([0, 1])
    engine.server.round(engine.uploads(1, Arrived([0, 1]), both, shared))
    mean = engine.server.shared
    torch.testing.assert_close(mean, shared.mean(dim=0), rtol=1e-6, atol=1e-6)
    assert (mean - (shared[0] + 3 * shared[1]) / 4).abs().max() > 0.1
    assert engine.collect([0, 1], both, torch.tensor([0.0, 4.0])) == (pytest.approx(3.0), False)
    engine.server.round(engine.uploads(2, Arrived([1]), both[1:], shared[1:]))
    torch.testing.assert_close(engine.server.shared, shared[1])


def test_a_padded_batch_in_a_run(tmp_path: Path) -> None:
    """Stacked and alone, the clients of 5 and 15 images send the same: batches of 5 and 8 are padded in the stack."""
    sent = []
    for together in (True, False):
        engine = new_engine(tmp_path, "optimizer.eps=0.1")  # Adam divides by the gradient's size: no rounding error may be blown up
        states, shared = engine.states, engine.server.shared
        ends = []
        for group in [[1, 0]] if together else [[1], [0]]:
            params = states.gather(group, shared)
            engine.training.train([engine.clients[i] for i in group], params, states.gather_optimizer(group), 1)
            ends.append(params)
        sent.append(torch.cat(ends) - shared)
    torch.testing.assert_close(sent[0], sent[1], rtol=1e-3, atol=1e-6)
    assert (sent[0].abs().amax(dim=1) > 1e-4).all()


@pytest.mark.parametrize("loss", ["infonce", "ce"])
def test_a_run(tmp_path: Path, loss: str) -> None:
    main(small.settings(tmp_path, "method.name=fedclip", f"method.fedclip.loss={loss}", "optimizer.lr=1e-3", "federation.rounds=1"))
    (row,) = small.metrics(tmp_path)
    assert row["comm"]["shared_parameters"] == 2 * (64 * 64 + 64)
    assert row["comm"]["uplink_bytes"] == row["comm"]["downlink_bytes"] == len(row["clients"]) * 33_280
    assert small.final_tensors(tmp_path)["server.shared"].isfinite().all()
