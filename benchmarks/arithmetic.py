"""The floating-point operations that adapters in a frozen CLIP cannot do without, counted by formula.

Counted are matrix products, two operations a multiply-add: linear layers, attention scores and mixtures, the patch embedding,
projections and logits. Element-wise work (norms, activations, sums, softmax, the optimizer) is not. Nothing is counted twice: no
recomputation in the backward pass, no gradient of a frozen weight, nothing below the first adapter in the backward pass, and of the
last block only what the pooled token needs. Attention under a causal mask is counted over all pairs of tokens, as usual.

Shape legend: T tokens, W width, H hidden width of the MLP, D embedding, r adapter dimension; C clients, B images a client, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from pfedmma.clip.backbone import Backbone, Prompts
from pfedmma.methods.adapters.multimodal import AdapterSpec


@dataclass(frozen=True)
class TowerShape:
    """What the counts of a tower depend on, for one sequence through it.

    ``depth`` blocks, of which the frozen part of the lowest ``frozen`` does not depend on any adapter; block ``frozen`` is the first that
    has an adapter, if ``dim`` > 0. ``pooled``: one token is pooled, so the last block works for that token alone. ``patch``: numbers in a
    patch of the image; 0 for text.
    """

    tokens: int
    width: int
    hidden: int
    depth: int
    embedding: int
    frozen: int
    dim: int
    pooled: bool = True
    patch: int = 0

    @property
    def above(self) -> range:
        """The blocks, from 1, that see adapted tokens."""
        return range(self.frozen + 1, self.depth + 1)

    def kept(self, block: int) -> int:
        """The tokens that leave ``block``."""
        return 1 if self.pooled and block == self.depth else self.tokens


def matmul(rows: int, inner: int, columns: int) -> int:
    """[rows,inner] @ [inner,columns]."""
    return 2 * rows * inner * columns


def block_linear(tower: TowerShape, block: int) -> int:
    """The frozen linear layers of a block: k and v of all tokens; q, out-projection and MLP of those that leave it."""
    kept, width = tower.kept(block), tower.width
    return matmul(tower.tokens, width, 2 * width) + 2 * matmul(kept, width, width) + 2 * matmul(kept, width, tower.hidden)


def block_attention(tower: TowerShape, block: int) -> int:
    """The two products of attention: scores, and the mixture of values."""
    return 2 * matmul(tower.kept(block), tower.width, tower.tokens)


def block_forward(tower: TowerShape, block: int) -> int:
    return block_linear(tower, block) + block_attention(tower, block)


def block_backward(tower: TowerShape, block: int) -> int:
    """With respect to activations alone: one product a linear layer; four for attention (of scores, values, queries and keys)."""
    return block_linear(tower, block) + 2 * block_attention(tower, block)


def adapter_forward(tower: TowerShape, block: int) -> int:
    """Down, S and Up on the tokens that leave the block."""
    kept, width, dim = tower.kept(block), tower.width, tower.dim
    return 2 * matmul(kept, width, dim) + matmul(kept, dim, dim)


def adapter_backward(tower: TowerShape, block: int) -> int:
    """Gradients of weights and of inputs; but for the input of the lowest Down, below which nothing is trained."""
    whole = 2 * adapter_forward(tower, block)
    return whole - matmul(tower.kept(block), tower.width, tower.dim) if block == tower.frozen else whole


def adapted_blocks(tower: TowerShape) -> range:
    return range(tower.frozen, tower.depth + 1) if tower.dim else range(0)


def below(tower: TowerShape) -> int:
    """The frozen part: patch embedding and the blocks up to the first adapter, whose block's own part included."""
    patches = matmul(tower.tokens - 1, tower.patch, tower.width) if tower.patch else 0
    return patches + sum(block_forward(tower, block) for block in range(1, tower.frozen + 1))


def projection(tower: TowerShape) -> int:
    return matmul(1 if tower.pooled else tower.tokens - 1, tower.width, tower.embedding)


def forward(tower: TowerShape) -> int:
    """From the first adapter to the feature."""
    blocks = sum(block_forward(tower, block) for block in tower.above)
    return blocks + sum(adapter_forward(tower, block) for block in adapted_blocks(tower)) + projection(tower)


def backward(tower: TowerShape) -> int:
    """From the feature's gradient down to the weights of the first adapter; nothing for a tower without adapters."""
    if not tower.dim:
        return 0
    blocks = sum(block_backward(tower, block) for block in tower.above)
    return blocks + sum(adapter_backward(tower, block) for block in adapted_blocks(tower)) + projection(tower)


def training_step(visual: TowerShape, text: TowerShape, clients: int, batch: int, classes: int) -> dict[str, int]:
    """Operations of one local step of all ``clients``, by part; the text tower's frozen part is done once a run and not counted."""
    images, prompts = clients * batch, clients * classes
    logits = clients * matmul(batch, visual.embedding, classes)
    return {
        "visual.below": images * below(visual),
        "visual.forward": images * forward(visual),
        "visual.backward": images * backward(visual),
        "text.forward": prompts * forward(text),
        "text.backward": prompts * backward(text),
        "logits.forward": logits,
        "logits.backward": logits * (bool(visual.dim) + bool(text.dim)),
    }


def evaluation(visual: TowerShape, text: TowerShape, clients: int, images: int, classes: int) -> dict[str, int]:
    """Operations of testing ``clients`` on one test set, seen as it is by all: the frozen parts once, the rest once a client."""
    return {
        "visual.below": images * below(visual),
        "visual.forward": clients * images * forward(visual),
        "text.below": classes * below(text),
        "text.forward": clients * classes * forward(text),
        "logits.forward": clients * matmul(images, visual.embedding, classes),
    }


def towers(backbone: Backbone, spec: AdapterSpec, prompts: Prompts) -> tuple[TowerShape, TowerShape]:
    """The shapes (visual, text) of a backbone with adapters, its text context cut to the longest of ``prompts``."""
    visual, text = backbone.visual, backbone.text
    embedding = visual.embedding
    shapes = []
    for name, tower, tokens in (("visual", visual, len(visual.positions)), ("text", text, text.cut(prompts.tokens).shape[1])):
        shapes.append(
            TowerShape(
                tokens=tokens,
                width=tower.width,
                hidden=tower.blocks[0].fc_weight.shape[0],
                depth=tower.depth,
                embedding=embedding,
                frozen=spec.frozen_blocks(backbone, name),
                dim=spec.dim if spec.has(name) else 0,
                pooled=name == "text" or visual.pool_type == "tok",
                patch=visual.patch_weight[0].numel() if name == "visual" else 0,
            )
        )
    return shapes[0], shapes[1]
