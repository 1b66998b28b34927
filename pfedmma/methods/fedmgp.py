"""FedMGP (arXiv 2511.00480): groups of paired prompts of both towers, some of which are drawn by likeness, averaged and given back.

Trained, all private: ``text.prompts`` P [G,n,Wt] and ``visual.prompts`` V [G,n,Wv]. P_g stands in place of the first n tokens of
"a photo of a {name}.", whose other words stay; V_g behind the patches, without position, in the first block alone. Groups never meet:
with z_g and w_g the normalised features of a group, logits_g = s z_g.w_g, and the answer is their mean: G passes of both towers. With d
how far two groups are apart (``distance``: l1, the mean over D numbers of |x - y|; l2, |x - y|; or cos, one minus the cosine),

    Delta = (mean over classes and pairs of groups of d(w_g, w_h) + mean over images and pairs of d(z_g, z_h)) / 2,
    loss = mean over groups of CE(logits_g) - diversity Delta.

The first n words' embeddings and N(0, 0.01^2) are the start of each P_g, N(0, 0.02^2) that of each V_g, the same for every client.

Exchanged, by the plain mean: ``text.sent`` [k,n,Wt] and ``visual.sent`` [k,n,Wv], which nothing trains. After training a client draws k
rows of P, and k of V by a draw of its own (``joint``: one draw for both, by the mean of both likenesses), one by one, without
replacement, with probabilities softmax(q / tau), where q_g is the largest cosine between row g and a row of the server's last mean. That is
zero until there is one: all rows are alike then. The server's row j is the mean of what was drawn j-th, whatever its number was at home,
and takes the place of just that row in each participant whose upload counts. All other rows stay its own, and nobody else gets anything.

A client begins a round with its own rows and answers with them, after those that it sent have been overwritten.

Bytes: 20,480 each way at ViT-B/16, as published, where all take part in every round. Who was not in the last mean needs it to draw by, and
is sent it besides the next one: the ledger counts both.

Deliberately unlike the public code: the second term's sign follows the README, which wants groups to differ (there an absolute value turns
it round, for each distance, so that it pulls groups together: ``published_sign``); draws are keyed by run, round, client and modality
(there one seed, of the sum of client and round, serves both modalities, so that both draw the same or nearly the same rows, and client 3
in round 5 draws as client 4 in round 4); the trained visual prompts are those that are tested and trained on (there they are stored under
a name that the model does not have, and each round begins with the first ones); their start follows from the seed (there from the clock);
rows are drawn over domains, too (there plain averaging of all); each client has an optimizer of its own (there one runs on through
all); prompts are fp32 (there fp16); the last round is reported (there the best on test images).

Shape legend: C clients, B images a client, K classes, G groups, n tokens of a prompt, k drawn rows, D embedding, Wt and Wv widths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pfedmma import rng
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.clip.stems import TowerStem
from pfedmma.clip.towers import Places
from pfedmma.methods.adapters.context import STD, LeadingWords, prompt_features
from pfedmma.methods.adapters.image_tokens import appended, features_without
from pfedmma.methods.base import Entry, cosine_logits, cross_entropy
from pfedmma.stack.rules import UNIFORM, State
from pfedmma.system import checks
from pfedmma.system.options import setting

TEXT, VISUAL = MODALITIES = ("text", "visual")
TEXT_STD = 0.01  # around the words' embeddings
Distance = Callable[[Tensor, Tensor], Tensor]
DISTANCES: dict[str, Distance] = {
    "l1": lambda x, y: (x - y).abs().mean(dim=-1),
    "l2": lambda x, y: (x - y).norm(dim=-1),
    "cos": lambda x, y: 1.0 - (x * y).sum(dim=-1),
}


@dataclass(frozen=True)
class FedMGPConfig:
    """FedMGP: groups of prompts in both towers, of which some are drawn and averaged."""

    groups: int = setting(5, "prompts of each tower; each text prompt meets one image prompt alone")
    sent: int = setting(2, "prompts of each tower that a participant draws and sends")
    context: int = setting(2, "tokens of each prompt")
    words: str = setting("a photo of a", "what stands before the class name; its leading tokens are where text prompts begin and stand")
    tau: float = setting(1.0, "temperature of the draw: near 0, the prompts most like the server's")
    joint: bool = setting(False, "draw once for both towers, by the mean of their likenesses, not once for each")
    diversity: float = setting(1.0, "weight of how far the features of groups are apart")
    distance: str = setting("l1", "how far two features are apart: l1 (mean over their numbers), l2 or cos")
    published_sign: bool = setting(False, "pull the features of groups together, as the public code does; false: apart, as it says")

    def __post_init__(self) -> None:
        for name in ("groups", "context"):
            checks.at_least(name, getattr(self, name), 1)
        checks.between("sent", self.sent, 1, self.groups)
        checks.positive("tau", self.tau)
        checks.at_least("diversity", self.diversity, 0)
        checks.one_of("distance", self.distance, DISTANCES)


@dataclass(frozen=True)
class FedMGP(LeadingWords):
    """G pairs of a text and an image prompt for each client."""

    settings: FedMGPConfig
    section = "method.fedmgp"

    @classmethod
    def from_settings(cls, settings: FedMGPConfig, backbone: Backbone) -> FedMGP:
        method = cls(backbone, settings)
        method.replaced_words()  # or there are too few of them
        return method

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        widths = {TEXT: self.backbone.text.width, VISUAL: self.backbone.visual.width}
        sizes = {"sent": self.settings.sent, "prompts": self.settings.groups}
        return {f"{part}.{name}": (size, self.settings.context, widths[part]) for name, size in sizes.items() for part in MODALITIES}

    @property
    def passes(self) -> int:
        return self.settings.groups

    @property
    def exchange(self) -> dict[str, str]:
        return dict.fromkeys(self.picked, UNIFORM)

    @property
    def picked(self) -> dict[str, str]:
        return {f"{part}.sent": f"{part}.prompts" for part in MODALITIES}

    def pick(self, state: State, keys: Sequence[int]) -> dict[str, Tensor]:
        """Rows [C,k] of each modality, first drawn first."""
        found = {part: likeness(state[f"{part}.prompts"], state[f"{part}.sent"]) for part in MODALITIES}
        if self.settings.joint:
            found = dict.fromkeys(MODALITIES, torch.stack(list(found.values())).mean(dim=0))
        streams = dict.fromkeys(MODALITIES, "both") if self.settings.joint else {part: part for part in MODALITIES}
        return {f"{part}.sent": self.drawn(q, keys, streams[part]) for part, q in found.items()}

    def drawn(self, q: Tensor, keys: Sequence[int], stream: str) -> Tensor:
        """k rows by likeness ``q`` [C,G]: [C,k]."""
        uniforms = torch.tensor([[rng.uniform(key, stream, row) for row in range(q.shape[1])] for key in keys], dtype=torch.float64)
        return draw(q / self.settings.tau, uniforms.to(q.device), self.settings.sent)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        shapes = self.shapes
        text, visual = (torch.randn(shapes[f"{part}.prompts"], generator=generator) for part in MODALITIES)
        nothing = {name: torch.zeros(shapes[name]) for name in self.picked}
        return nothing | {
            "text.prompts": self.backbone.text.token_embedding[self.replaced_words()].cpu() + TEXT_STD * text,
            "visual.prompts": STD * visual,
        }

    def image_stem(self, pixels: Tensor) -> TowerStem:
        return self.backbone.image_stem(pixels, 0)

    def text_features(self, state: State, stem: PromptStem) -> Tensor:
        """[C,G,K,D]."""
        prompts = state["text.prompts"]
        return prompt_features(self.backbone, stem, prompts.flatten(0, 1)).unflatten(0, prompts.shape[:2])

    def image_features(self, state: State, stem: TowerStem) -> Tensor:
        """[C,B,G,D]."""
        tower, prompts = self.backbone.visual, state["visual.prompts"]
        clients, groups = prompts.shape[:2]
        own = prompts.flatten(0, 1)  # as if each group were a client

        def tokens(block: int, x: Tensor) -> Tensor:
            return appended(tower, own, x) if block == 1 else x

        several = stem.each(lambda t: t.unflatten(0, (clients, 1, -1)).expand(-1, groups, *(-1,) * t.dim()).flatten(0, 2))
        x = tower.finish(several, Places(tokens=tokens))
        features = features_without(tower, x, stem.pool, prompts.shape[2]).float().unflatten(0, (clients, groups, -1))
        return F.normalize(features, dim=-1).transpose(1, 2)

    def logits(self, state: State, images: Tensor, texts: Tensor) -> Tensor:
        return self.logits_of_groups(images, texts).mean(dim=1)

    def logits_of_groups(self, images: Tensor, texts: Tensor) -> Tensor:
        """[C,B,G,D], [C,G,K,D] -> [C,G,B,K]."""
        each = cosine_logits(images.transpose(1, 2).flatten(0, 1), texts.flatten(0, 1), self.backbone.logit_scale)
        return each.unflatten(0, texts.shape[:2])

    def loss(self, state: State, images: Tensor, texts: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        groups = self.logits_of_groups(images, texts).unbind(dim=1)
        fit = torch.stack([cross_entropy(logits, labels, weights) for logits in groups]).mean(dim=0)
        sign = 1.0 if self.settings.published_sign else -1.0
        return fit + sign * self.settings.diversity * self.apart(images, texts, weights)

    def apart(self, images: Tensor, texts: Tensor, weights: Tensor) -> Tensor:
        """Delta of each client [C], from [C,B,G,D], [C,G,K,D] and the weights of images [C,B]."""
        distance = DISTANCES[self.settings.distance]
        of_classes = between_groups(texts, distance).mean(dim=1)
        return (of_classes + (between_groups(images.transpose(1, 2), distance) * weights).sum(dim=1)) / 2.0


def likeness(own: Tensor, servers: Tensor) -> Tensor:
    """The largest cosine of each row of own prompts [C,G,n,W] with one of the server's [C,k,n,W]: [C,G], fp64; 0 where these are zero."""
    own, servers = own.double().flatten(2).unsqueeze(2), servers.double().flatten(2).unsqueeze(1)
    return F.cosine_similarity(own, servers, dim=-1).amax(dim=-1)


def draw(scores: Tensor, uniforms: Tensor, drawn: int) -> Tensor:
    """``drawn`` numbers without replacement with probabilities softmax(scores) [C,G], renormalised after each, in order: [C,drawn].

    By ``uniforms`` [C,G] from 0 to below 1: the largest sums of a score and a Gumbel number are such a draw (Kool et al. 2019, arXiv
    1903.06059).
    """
    return (scores - (-uniforms.log()).log()).topk(drawn, dim=1).indices


def between_groups(x: Tensor, distance: Distance) -> Tensor:
    """The mean over all pairs of groups of how far features [C,G,N,D] are apart: [C,N]; 0 of one group."""
    pairs = [distance(x[:, g + 1 :], x[:, g : g + 1]) for g in range(x.shape[1] - 1)]
    return torch.cat(pairs, dim=1).mean(dim=1) if pairs else x.new_zeros(x.shape[0], x.shape[2])


ENTRIES = (Entry("fedmgp", FedMGP.from_settings, FedMGPConfig),)
