"""pFedMoAP (Luo et al. 2025, arXiv 2410.10114): prompts of other clients as experts, mixed by a private attention.

Trained: ``prompt`` [L,W], exchanged by weighted mean, while the server also keeps the prompt that each participant sent; and the gating,
four private linears q, k, v and o of width G = D/4. A client reads the prompts nearest to its own; they are experts, without gradient.
With pool(v) every fourth number of v, and h_c the attention of the query pool(z) over the keys and values pool(w_local,c) and pool(w_c)
of each expert, the logits are

    mix * s z.w_local,c + s pool(z).h_c      or, without experts,      s z.w_local,c

Attention scores are multiplied by ``factor`` instead of being divided by the root of a head's width. The gating starts as
``torch.nn.Linear`` does (weights and biases uniform within 1/sqrt(G)), the same for all clients unless ``method.private_init=own``.

A client answers with its own last prompt, as in the public code: who takes part is tested right after its local training, before
averaging, with the experts that it trained with; who does not, with the prompt that it sent last and with experts out of what the server
has by then; who never trained, with the server's prompt.

Deliberate differences: the features of the experts are computed once a download, and once for all clients that read the same prompt
(the numbers are the same); equally near prompts are taken in order of client; all participants of a round read what the server had at its
start (there, those that train later read what those before them have just sent); a client that has sent nothing yet looks for neighbours
of the server's prompt (there, it has no experts in its first round, and does not keep that round's gating); the optimizer treats the
gating alike in every round, so weight decay acts on it in a round without experts, too.

Shape legend: C clients, B images a client, K classes, E other clients read, M = 1 + E with the client's own, D embedding, G = D/4
rounded up, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.methods.adapters.context import ContextConfig, context_length, context_stem, initial_context, prompt_features
from pfedmma.methods.base import Entry, Method, cosine_logits
from pfedmma.stack.linear import apply_linear, by_head, initial_linear, linear_shapes
from pfedmma.stack.rules import OWN, POOL, Given, State
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import setting

GATING = tuple(f"gating.{part}" for part in "qkvo")
STRIDE = 4  # of `pool`


@dataclass(frozen=True)
class PFedMoAPConfig(ContextConfig):
    """pFedMoAP: other clients' prompts as experts, mixed by a private gating."""

    experts: int = setting(10, "prompts that a client mixes, its own included")
    heads: int = setting(8, "heads of the gating's attention")
    factor: float = setting(10.0, "factor of the gating's attention scores")
    mix: float = setting(0.5, "weight of the client's own logits beside the mixture's")
    gating_lr: float = setting(0.01, "learning rate of the gating")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("experts", "heads"):
            checks.at_least(name, getattr(self, name), 1)
        for name in ("factor", "mix", "gating_lr"):
            checks.at_least(name, getattr(self, name), 0)


@dataclass(frozen=True)
class PFedMoAP(Method):
    """One context a client, beside frozen ones of its neighbours; ``width`` is G."""

    settings: PFedMoAPConfig
    length: int
    width: int

    @classmethod
    def from_settings(cls, settings: PFedMoAPConfig, backbone: Backbone) -> PFedMoAP:
        width = -(-backbone.visual.embedding // STRIDE)
        if width % settings.heads:
            raise UserError(f"method.pfedmoap.heads: {settings.heads} do not divide the {width} numbers that the gating sees of a feature")
        return cls(backbone, settings, context_length(backbone, settings), width)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"prompt": (self.length, self.backbone.text.width)}
        for name in GATING:
            shapes |= linear_shapes(name, self.width, self.width)
        return shapes

    @property
    def exchange(self) -> dict[str, str]:
        return {"prompt": POOL}

    @property
    def reads(self) -> int:
        return self.settings.experts - 1

    @property
    def answers(self) -> str:
        return OWN

    @property
    def learning_rates(self) -> dict[str, float]:
        return {name: self.settings.gating_lr for name in self.shapes if name != "prompt"}

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        state = {"prompt": initial_context(self.backbone, self.length, self.settings.words, generator)}
        for name in GATING:
            state |= initial_linear(name, self.width, self.width, generator)
        return state

    def text_stem(self, prompts: Prompts) -> PromptStem:
        return context_stem(self.backbone, prompts.names, self.length)

    @torch.no_grad()
    def fixed(self, state: State, given: Given, text_stem: PromptStem) -> dict[str, Tensor]:
        """``experts`` [C,E,K,G], what the gating sees of the others' text features, and ``present`` [C,E]; nothing without others."""
        if given.others is None:
            return {}
        prompts = given.others.tensors["prompt"]  # [C,E,L,W]; near clients read much the same ones, so each is run once
        distinct, index = prompts.flatten(0, 1).unique(dim=0, return_inverse=True)
        # As many at a time as there are clients, which is what a training step runs.
        features = [prompt_features(self.backbone, text_stem, part) for part in distinct.split(len(prompts))]
        return {"experts": pool(torch.cat(features))[index.view(prompts.shape[:2])], "present": given.others.present}

    def text_features(self, state: State, stem: PromptStem) -> Tensor:
        return prompt_features(self.backbone, stem, state["prompt"])

    def logits(self, state: State, images: Tensor, texts: Tensor) -> Tensor:
        own = cosine_logits(images, texts, self.backbone.logit_scale)
        if "experts" not in state:
            return own
        keys = torch.cat([pool(texts).unsqueeze(1), state["experts"]], dim=1)
        present = torch.cat([torch.ones_like(state["present"][:, :1]), state["present"]], dim=1)
        gated = self.settings.mix * own + self.backbone.logit_scale * self.mixture(state, pool(images), keys, present)
        return torch.where(state["present"].any(dim=1)[:, None, None], gated, own)

    def mixture(self, state: State, queries: Tensor, keys: Tensor, present: Tensor) -> Tensor:
        """Each query times its attention over a class's experts: [C,B,G], [C,M,K,G], ``present`` [C,M] -> [C,B,K], in fp32.

        The attention's output, [C,B,K,G], is never made: it is wanted only in its product with the query, in which the output linear
        may as well act on the query.
        """
        experts, heads = keys.shape[1:3], self.settings.heads
        with torch.autocast(queries.device.type, enabled=False):
            queries, keys = queries.float(), keys.float().flatten(1, 2)
            q, k, v = (
                by_head(apply_linear(state, name, x), heads) for name, x in zip(GATING[:3], (queries, keys, keys), strict=True)
            )  # [C,H,B,G/H], [C,H,M*K,G/H] twice
            out = by_head(torch.bmm(queries, state["gating.o.weight"]), heads)
            scores = (self.settings.factor * q @ k.mT).unflatten(-1, experts)  # [C,H,B,M,K]
            shares = scores.masked_fill(~present[:, None, None, :, None], -torch.inf).softmax(dim=3)
            values = (out @ v.mT).unflatten(-1, experts)
            bias = torch.bmm(queries, state["gating.o.bias"].unsqueeze(-1))  # [C,B,1], the same for all classes
            return (shares * values).sum(dim=(1, 3)) + bias


def pool(features: Tensor) -> Tensor:
    """[...,D] -> [...,G]: every fourth number."""
    return features[..., ::STRIDE]


ENTRIES = (Entry("pfedmoap", PFedMoAP.from_settings, PFedMoAPConfig, {"lr": 2e-3}),)
