"""FedTPG (Qiu et al. 2023, arXiv 2310.06123): one network, shared by all clients, makes the context of prompts out of class names.

E [K,D] are the frozen text features of the bare class names, without template and full stop, normalised. n learned queries Q [n,W] ask
them, and what they find goes through a gated layer:

    h = MHA(query LN(Q), keys and values LN(E)),      ctx = h + contract(a * gelu(b)),      (a, b) = expand(LN(h)),

with 4 heads and no residual from Q to h. ctx [n,W] serves all classes: ``[SOS] ctx name . [EOS]``. Trained, all exchanged by the plain
mean over participants: ``queries``, the norms ``query_norm``, ``name_norm`` and ``context_norm``, the linears ``q``, ``k``, ``v``, ``o``,
``expand`` [8W,W] and ``contract`` [W,4W]. q, k and v start as Xavier's of one packed weight, further weights and the biases of the last
two as torch's, the attention's biases at 0.

A client trains with the names of the classes that it holds alone, in E and in the cross-entropy, so that contexts differ by client.
``names: all`` takes all base classes for both, as re-implementations do that know no client's classes.

A client answers with the server's network, as in the public code, on the names of the classes it is asked about, whoever it is: of the
base test set, of the novel one, or those given to `predict`. So all clients are one model. Local accuracy is read off the base pass, as
that of all methods here: its context is made of all base names, and it is to be told from all base classes. The paper's local test gives
the network the client's own names, and lets it choose among them: an easier question.

Deliberately unlike the public code: the learning rate is constant, and ``optimizer.cosine_rounds=500`` lets it fall as there; the network
is fp32 (there fp16); it has one attention block, the first of which its ``depth_ctx`` greater than 1 would overwrite; images are augmented
as the run says (there not at all). With own names, features of other classes are computed and not read.

Shape legend: C clients, B images a client, K classes, H heads, n context tokens, W text width, D embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.methods.adapters.context import STD, ContextConfig, context_length, context_stem, prompt_features
from pfedmma.methods.base import Entry, Method, cross_entropy, shared_by
from pfedmma.stack.linear import apply_linear, by_head, initial_linear, initial_weight, linear_shapes, uniform_within
from pfedmma.stack.rules import UNIFORM, Given, State
from pfedmma.system import checks
from pfedmma.system.options import setting

HEADS = 4
NAMES = OWN, ALL = "own", "all"


@dataclass(frozen=True)
class FedTPGConfig:
    """FedTPG: a network that makes the context out of class names."""

    context: int = setting(4, "context tokens that the network makes")
    names: str = setting("own", "class names that a client trains with: own (of the classes that it holds) or all (of the base classes)")

    def __post_init__(self) -> None:
        checks.at_least("context", self.context, 1)
        checks.one_of("names", self.names, NAMES)


@dataclass(frozen=True)
class NamedStem:
    """``context``: the prompts with room for the context; ``names`` [K,D]: features of the bare names, normalised."""

    context: PromptStem
    names: Tensor


@dataclass(frozen=True)
class FedTPG(Method):
    """One network for all clients, which makes ``length`` tokens."""

    settings: FedTPGConfig
    length: int

    @classmethod
    def from_settings(cls, settings: FedTPGConfig, backbone: Backbone) -> FedTPG:
        return cls(backbone, settings, context_length(backbone, ContextConfig(settings.context)))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        width, embedding = self.backbone.text.width, self.backbone.visual.embedding
        shapes: dict[str, tuple[int, ...]] = {"queries": (self.length, width)}
        for name, size in {"query_norm": width, "name_norm": embedding, "context_norm": width}.items():
            shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
        for name, size in {"q": width, "k": embedding, "v": embedding, "o": width}.items():
            shapes |= linear_shapes(name, size, width)
        return shapes | linear_shapes("expand", width, 8 * width) | linear_shapes("contract", 4 * width, width)

    @property
    def exchange(self) -> dict[str, str]:
        return dict.fromkeys(self.shapes, UNIFORM)

    @property
    def knows_classes(self) -> bool:
        return self.settings.names == OWN

    @property
    def answers_by_classes(self) -> bool:
        return False

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        width, shapes = self.backbone.text.width, self.shapes
        state = {name: torch.full(shape, float("norm.weight" in name)) for name, shape in shapes.items()}
        state["queries"] = torch.randn(shapes["queries"], generator=generator) * STD
        for part in "qkv":
            shape = shapes[f"{part}.weight"]
            state[f"{part}.weight"] = uniform_within(math.sqrt(6.0 / (shape[1] + 3 * width)), shape, generator)
        state["o.weight"] = initial_weight(shapes["o.weight"], generator)
        return state | initial_linear("expand", width, 8 * width, generator) | initial_linear("contract", 4 * width, width, generator)

    def text_stem(self, prompts: Prompts) -> NamedStem:
        bare = self.backbone.text_features(self.backbone.prompts("{}", prompts.names))
        return NamedStem(context_stem(self.backbone, prompts.names, self.length), F.normalize(bare.value, dim=-1))

    def fixed(self, state: State, given: Given, text_stem: NamedStem) -> dict[str, Tensor]:
        return {} if given.held is None else {"held": given.held}

    def text_features(self, state: State, stem: NamedStem) -> Tensor:
        return prompt_features(self.backbone, stem.context, self.context(state, stem.names))

    def context(self, state: State, names: Tensor) -> Tensor:
        """Each client's context [C,n,W] out of the names [K,D] of the classes that it holds, or of all; fp32 in mixed precision, too."""
        with torch.autocast(names.device.type, enabled=False):
            h = self.asked(state, names)
            a, b = apply_linear(state, "expand", norm(state, "context_norm", h)).chunk(2, dim=-1)
            return h + apply_linear(state, "contract", a * F.gelu(b))

    def asked(self, state: State, names: Tensor) -> Tensor:
        """What the queries find in the names: [K,D] -> [C,n,W]."""
        rows = norm(state, "name_norm", shared_by(state, names))
        queries = norm(state, "query_norm", state["queries"])
        q, k, v = (by_head(apply_linear(state, part, x), HEADS) for part, x in (("q", queries), ("k", rows), ("v", rows)))
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # [C,H,n,K]
        if "held" in state:
            scores = scores.masked_fill(~state["held"][:, None, None], -torch.inf)
        return apply_linear(state, "o", (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        logits = self.logits(state, images, texts)
        if "held" in state:
            logits = logits.masked_fill(~state["held"].unsqueeze(1), -torch.inf)
        return cross_entropy(logits, labels, weights)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    """Each client's own layer norm of [C,N,W]."""
    return F.layer_norm(x, x.shape[-1:]) * state[f"{name}.weight"].unsqueeze(1) + state[f"{name}.bias"].unsqueeze(1)


PUBLISHED = {"lr": 3e-3, "weight_decay": 1e-5, "state": "persist"}
ENTRIES = (Entry("fedtpg", FedTPG.from_settings, FedTPGConfig, PUBLISHED),)
