"""The frozen towers of CLIP, run block by block, with a few named places where a method may act.

open_clip's modules supply the weights; the forward pass is written out here because three exact shortcuts need to see
inside it: the frozen part below the first place in use runs once (`Tower.stem`), the last block computes queries, MLP and
adapter of the pooled token alone, and the text context is cut to the longest prompt.

Shape legend: N sequences (clients x images, or clients x prompts), T tokens, W width, H heads, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma.clip.stems import TowerStem


@dataclass(frozen=True)
class Places:
    """Where a method acts in a tower; None where it does not. Blocks are numbered from 1.

    ``tokens``: (block, tokens that come to it [N,T,W]) -> tokens that enter it [N,T',W]; for prompts.
    ``attention``: (block, "q" | "k" | "v", LN1 of the block's input [N,T,W]) -> what to add to that projection [N,T,W]; for LoRA.
    ``output``: (block, LN1 of the block's input [N,T,W]) -> what to add to the block's output [N,T,W]; for adapters.

    In the last block, queries and output are those of the pooled token alone wherever one token is pooled: T = 1.
    """

    tokens: Callable[[int, Tensor], Tensor] | None = None
    attention: Callable[[int, str, Tensor], Tensor] | None = None
    output: Callable[[int, Tensor], Tensor] | None = None


class Norm:
    """A frozen layer norm; computed in fp32 whatever the precision of the matrix products."""

    def __init__(self, module: Any) -> None:
        self.identity = isinstance(module, nn.Identity)
        if not self.identity:
            self.weight, self.bias, self.eps = module.weight.detach().float(), module.bias.detach().float(), module.eps

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.identity else F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Block:
    """One frozen pre-norm transformer block (open_clip's ``ResidualAttentionBlock``)."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        def frozen(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype)

        attention, mlp = module.attn, module.mlp
        self.heads = attention.num_heads
        self.norm1, self.norm2 = Norm(module.ln_1), Norm(module.ln_2)
        self.in_weight, self.in_bias = frozen(attention.in_proj_weight), frozen(attention.in_proj_bias)
        self.out_weight, self.out_bias = frozen(attention.out_proj.weight), frozen(attention.out_proj.bias)
        self.fc_weight, self.fc_bias = frozen(mlp.c_fc.weight), frozen(mlp.c_fc.bias)
        self.proj_weight, self.proj_bias = frozen(mlp.c_proj.weight), frozen(mlp.c_proj.bias)
        self.activation = mlp.gelu
        self.gamma1, self.gamma2 = (getattr(ls, "gamma", None) for ls in (module.ls_1, module.ls_2))

    def __call__(
        self, x: Tensor, causal: bool, pool: Tensor | None = None, add: Callable[[str, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(LN1(x), the block's output), both [N,T,W]; with ``pool`` [N], of the pooled token alone: [N,1,W].

        ``add``: ("q" | "k" | "v", LN1(x)) -> what to add to that projection.
        """
        normed = every = self.norm1(x).to(self.in_weight.dtype)  # once, for the projections and whatever a method does with it
        width = x.shape[-1]
        if pool is None:
            q, k, v = F.linear(normed, self.in_weight, self.in_bias).chunk(3, dim=-1)
            mask = None
        else:
            k, v = F.linear(normed, self.in_weight[width:], self.in_bias[width:]).chunk(2, dim=-1)
            # The pooled token sees itself and what came before it, as in the full causal mask.
            mask = (torch.arange(x.shape[1], device=x.device) <= pool[:, None])[:, None, None] if causal else None
            x, normed = take(x, pool), take(normed, pool)
            q = F.linear(normed, self.in_weight[:width], self.in_bias[:width])
        if add is not None:
            q, k, v = q + add("q", normed), k + add("k", every), v + add("v", every)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = attention(q, k, v, mask, causal and pool is None)
        mixed = F.linear(mixed.transpose(1, 2).flatten(2), self.out_weight, self.out_bias)
        x = x + (mixed if self.gamma1 is None else mixed * self.gamma1)
        hidden = self.activation(F.linear(self.norm2(x).to(self.fc_weight.dtype), self.fc_weight, self.fc_bias))
        hidden = F.linear(hidden, self.proj_weight, self.proj_bias)
        return normed, x + (hidden if self.gamma2 is None else hidden * self.gamma2)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k' / sqrt(width)) v: [N,H,T,width] each (fewer queries with a pooled token), ``mask`` [N,1,1,T] where True is seen."""
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    # On a CPU the fused kernel's backward in half precision takes a third of a training step; written out it is several times faster.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def take(x: Tensor, index: Tensor) -> Tensor:
    """[N,T,W], [N] -> [N,1,W]: one token of each sequence."""
    return x[torch.arange(len(x), device=x.device), index].unsqueeze(1)


class Tower:
    """A stack of frozen blocks. Blocks are numbered from 1, as in the paper."""

    def __init__(self, blocks: Any, causal: bool, width: int, dtype: torch.dtype) -> None:
        self.blocks = [Block(block, dtype) for block in blocks]
        self.causal = causal
        self.width = width

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def stem(self, x: Tensor, pool: Tensor | None, blocks: int) -> TowerStem:
        """Run the lowest ``blocks`` blocks as they are.

        Args:
            x: embedded tokens [N,T,W].
            pool: [N] index of the pooled token, None to keep all tokens to the end.
        """
        normed = None
        for number in range(1, blocks + 1):
            normed, x = self._run(number, x, pool)
        return TowerStem(x, normed, pool, blocks)

    def finish(self, stem: TowerStem, places: Places) -> Tensor:
        """From a stem to the top with ``places`` acting in the blocks that are left; [N,T or 1,W].

        The output place acts on the last block of the stem, too: what is frozen about it has been done there.
        """
        x = stem.output
        if places.output is not None and stem.normed is not None:
            x = x + places.output(stem.blocks, stem.normed)
        for number in range(stem.blocks + 1, self.depth + 1):
            if places.tokens is not None:
                x = places.tokens(number, x)
            normed, x = self._run(number, x, stem.pool, places.attention)
            if places.output is not None:
                x = x + places.output(number, normed)
        return x

    def _run(self, number: int, x: Tensor, pool: Tensor | None, attention=None) -> tuple[Tensor, Tensor]:
        add = None if attention is None else lambda part, normed: attention(number, part, normed)
        return self.blocks[number - 1](x, self.causal, pool if number == self.depth else None, add)


class VisualTower(Tower):
    """A ViT; `embed` -> `stem` -> `finish` -> `features`."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        super().__init__(module.transformer.resblocks, False, module.transformer.width, dtype)
        self.patch_weight = module.conv1.weight.detach().float()
        self.class_token, self.positions = module.class_embedding.detach().float(), module.positional_embedding.detach().float()
        self.norm_pre, self.norm_post = Norm(module.ln_pre), Norm(module.ln_post)
        self.projection = module.proj.detach().float()
        self.pool_type, self.norm_after_pool = module.pool_type, module.final_ln_after_pool

    def embed(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """[N,3,S,S] normalised pixels -> tokens [N,T,W] and the index of the pooled token [N]."""
        patches = F.conv2d(pixels, self.patch_weight, stride=self.patch_weight.shape[-2:]).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(pixels), 1, -1).to(patches.dtype), patches], dim=1)
        pool = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device) if self.pool_type == "tok" else None
        return self.norm_pre(tokens + self.positions), pool

    def features(self, x: Tensor) -> Tensor:
        """Tokens of the last block [N,T or 1,W] -> image features [N,D], not normalised."""
        if self.pool_type == "tok":
            pooled = self.norm_post(x[:, 0])
        elif self.norm_after_pool:
            pooled = self.norm_post(x[:, 1:].mean(dim=1))
        else:
            pooled = self.norm_post(x)[:, 1:].mean(dim=1)
        return pooled @ self.projection

    def patch_features(self, x: Tensor) -> Tensor:
        """All tokens of the last block [N,T,W] -> features of the patches [N,T-1,D], not normalised; the class token is left out."""
        return self.norm_post(x[:, 1:]) @ self.projection


class TextTower(Tower):
    """CLIP's text transformer; `embed` -> `stem` -> `finish` -> `features`."""

    def __init__(self, module: Any, pool_type: str, eos_id: int, dtype: torch.dtype) -> None:
        super().__init__(module.transformer.resblocks, module.attn_mask is not None, module.transformer.width, dtype)
        self.token_embedding = module.token_embedding.weight.detach().float()
        self.positions = module.positional_embedding.detach().float()
        self.norm_final = Norm(module.ln_final)
        projection = module.text_projection
        self.projection: Tensor | None = None
        self.projection_bias: Tensor | None = None
        if isinstance(projection, nn.Linear):
            self.projection = projection.weight.detach().float().T
            self.projection_bias = None if projection.bias is None else projection.bias.detach().float()
        elif projection is not None:
            self.projection = projection.detach().float()
        self.pool_type, self.eos_id = pool_type, eos_id

    def pool_index(self, tokens: Tensor) -> Tensor:
        """[N,T] token ids -> [N] index of the token that is pooled."""
        if self.pool_type == "argmax":  # the end-of-text token has the highest id
            return tokens.argmax(dim=-1)
        if self.pool_type == "eos":
            return (tokens == self.eos_id).int().argmax(dim=-1)
        return torch.full((len(tokens),), 0 if self.pool_type == "first" else tokens.shape[1] - 1, device=tokens.device)

    def cut(self, tokens: Tensor) -> Tensor:
        """Drop the columns after the last pooled token: under a causal mask nothing after it is ever read.

        On the meta device it is not known which these are, and all are kept.
        """
        if not self.causal or self.pool_type == "last" or tokens.is_meta:
            return tokens
        return tokens[:, : int(self.pool_index(tokens).max()) + 1]

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[N,T] token ids, T up to the context length -> tokens [N,T,W] and the index of the pooled token [N]."""
        x = self.token_embedding[tokens] + self.positions[: tokens.shape[1]]
        return x, self.pool_index(tokens)

    def features(self, x: Tensor) -> Tensor:
        """The pooled token of the last block [N,1,W] -> text features [N,D], not normalised."""
        pooled = self.norm_final(x[:, 0])
        if self.projection is None:
            return pooled
        projected = pooled @ self.projection
        return projected if self.projection_bias is None else projected + self.projection_bias
