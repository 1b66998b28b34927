"""Algorithm 1 of pFedMMA, written to be read: one client at a time, nothing skipped, nothing cached.

CLIP's forward pass is open_clip's own, over the full context; the adapters are ordinary modules that hooks add to the blocks;
gradients and optimizers are torch's. There is no client axis. From pfedmma come only the keys of the random draws; partition, pixels
and initial adapters are handed in, so that the system and this page start from the same numbers and see the same batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma import rng


class TimesAlpha(torch.autograd.Function):
    """Stands at the adapter's input: identity forward, gradient times alpha backward."""

    @staticmethod
    def forward(ctx, x: Tensor, alpha: float) -> Tensor:
        ctx.alpha = alpha
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.alpha * grad, None


class TimesOneOverAlpha(torch.autograd.Function):
    """Stands at the adapter's output: identity forward, gradient times 1 / alpha backward."""

    @staticmethod
    def forward(ctx, x: Tensor, alpha: float) -> Tensor:
        ctx.alpha = alpha
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad / ctx.alpha, None


class Adapters(nn.Module):
    """One client's adapters in both towers of ``clip``; its parameters are named ``visual.5.down.weight``, ``shared.5.bias``, ...

    The S of a pair of blocks is one module that both towers call; it is numbered by the visual tower's block.
    """

    def __init__(self, clip: nn.Module, blocks: int, dim: int, alpha: float, activation: str = "relu") -> None:
        super().__init__()
        self.alpha = alpha
        self.activation = {"relu": F.relu, "gelu": F.gelu}[activation]
        self.visual, self.text, self.shared = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.places: list[tuple[nn.Module, nn.Module, nn.Module]] = []  # (block of CLIP, Down and Up, S)
        visual, text = clip.visual.transformer, clip.transformer
        for below in range(blocks):  # 0 is the top block of either tower
            v, t = str(visual.layers - below), str(text.layers - below)
            self.visual[v] = nn.ModuleDict({"down": nn.Linear(visual.width, dim), "up": nn.Linear(dim, visual.width)})
            self.text[t] = nn.ModuleDict({"down": nn.Linear(text.width, dim), "up": nn.Linear(dim, text.width)})
            self.shared[v] = nn.Linear(dim, dim)
            self.places.append((visual.resblocks[-1 - below], self.visual[v], self.shared[v]))
            self.places.append((text.resblocks[-1 - below], self.text[t], self.shared[v]))

    def forward(self, h: Tensor, own: nn.Module, shared: nn.Module) -> Tensor:
        """alpha * A(h), A(h) = Up(relu(S(relu(Down(h))))), or with gelu for relu."""
        x = TimesAlpha.apply(h, self.alpha)
        x = own["up"](self.activation(shared(self.activation(own["down"](x)))))
        return self.alpha * TimesOneOverAlpha.apply(x, self.alpha)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the CLIP model computes with these adapters."""
        handles = [handle for place in self.places for handle in self._hook(*place)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, block: nn.Module, own: nn.Module, shared: nn.Module) -> list:
        """out = block(x) + alpha * A(LN1(x)): LN1(x) is caught where the block computes it."""
        caught: list[Tensor] = []
        catch = block.ln_1.register_forward_hook(lambda module, args, normed: caught.append(normed))
        add = block.register_forward_hook(lambda module, args, output: output + self(caught.pop(), own, shared))
        return [catch, add]


def prompts(clip: nn.Module, template: str, names: Sequence[str]) -> Tensor:
    """Token ids [K, context length] of "a photo of a {class}."."""
    return open_clip.tokenize([template.format(name.replace("_", " ")) for name in names], clip.context_length)


def logits(clip: nn.Module, adapters: Adapters, images: Tensor, tokens: Tensor) -> Tensor:
    """exp(logit_scale) * cos(image, text) [images, classes], both towers with this client's adapters."""
    with adapters.in_place():
        image, text = clip.encode_image(images, normalize=True), clip.encode_text(tokens, normalize=True)
    return clip.logit_scale.exp() * image @ text.T


@torch.no_grad()
def logits_on(clip: nn.Module, adapters: Adapters, client, pixels, images, template: str) -> Tensor:
    """Logits on the test images ``images`` (an `EvaluationSet`) among its own classes, seen through the client's camera."""
    pictures = pixels.normalise(pixels.fitted(images.split, images.indices), client.camera)
    return logits(clip, adapters, pictures, prompts(clip, template, images.classes))


def train(clip: nn.Module, adapters: Adapters, client, pixels, tokens: Tensor, config, round_: int) -> None:
    """Local training of one client: E epochs, a fresh optimizer, cross-entropy over all base classes."""
    optimizer = new_optimizer(adapters, config.optimizer)
    number = 0  # of the batch in this round
    for epoch in range(config.federation.local_epochs):
        order = torch.randperm(len(client.train), generator=rng.generator(config.seed, "shuffle", round_, client.id, epoch))
        for rows in order.split(config.federation.batch_size):
            draws = rng.generator(config.seed, "augment", round_, client.id, number)
            images = pixels.normalise(pixels.training(client.train[rows], draws), client.camera)
            loss = F.cross_entropy(logits(clip, adapters, images, tokens), client.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            number += 1


def new_optimizer(adapters: Adapters, config) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD(adapters.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    assert config.name == "adamw"
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(adapters.parameters(), config.lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay)


def participants(clients: int, participation: float, seed: int, round_: int) -> list[int]:
    """max(1, round(p K)) of K clients."""
    order = torch.randperm(clients, generator=rng.generator(seed, "cohort", round_)).tolist()
    return order[: max(1, round(participation * clients))]


def average(models: Sequence[Adapters], chosen: Sequence[int], sizes: Sequence[int], exchanged: Callable[[str], bool]) -> None:
    """The server: S = sum of (n_i / n) S_i over the participants, and every client receives it."""
    n = sum(sizes[i] for i in chosen)
    for name, _ in models[0].named_parameters():
        if exchanged(name):
            mean = sum(sizes[i] / n * models[i].get_parameter(name).detach() for i in chosen)
            for model in models:
                model.get_parameter(name).data.copy_(mean)


def federate(clip: nn.Module, config, clients: Sequence, pixels, tokens: Tensor, models: Sequence[Adapters], exchanged) -> None:
    """All rounds, in place; ``exchanged(name)`` says whether a tensor is the server's to average."""
    for round_ in range(1, config.federation.rounds + 1):
        chosen = participants(len(clients), config.federation.participation, config.seed, round_)
        for i in chosen:
            train(clip, models[i], clients[i], pixels, tokens, config, round_)
        average(models, chosen, [len(client.train) for client in clients], exchanged)
