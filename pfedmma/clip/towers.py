"""The frozen towers of CLIP, run block by block, with a few named places where a method may act.

open_clip's modules supply the weights; the forward pass is written out here because three exact shortcuts need to see
inside it: the frozen part below the first place in use runs once (`Tower.stem`), the last block computes queries, MLP and
adapter of the pooled token alone, and the text context is cut to the longest prompt.

Shape legend: N sequences (clients x images, or clients x prompts), T tokens, W width, H heads, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pfedmma.clip import pointwise
from pfedmma.clip.prompt_stem import Part, PromptStem, lengths_of_parts
from pfedmma.clip.stems import TowerStem


@dataclass(frozen=True)
class Places:
    """Where a method acts in a tower; None where it does not. Blocks are numbered from 1.

    ``tokens``: (block, tokens that come to it [N,T,W]) -> tokens that enter it [N,T',W]; for prompts.
    ``attention``: (block, "q" | "k" | "v", LN1 of the block's input [N,T,W]) -> what to add to that projection [N,T,W]; for LoRA.
    ``output``: (block, LN1 of the block's input [N,T,W]) -> what to add to the block's output [N,T,W]; for adapters.

    In the last block, queries and output are those of the pooled token alone wherever one token is pooled: T = 1. Class prompts may go
    through in several parts, each with a length T of its own (`PromptStem`).

    ``of_part``: (numbers of the classes that go through together [n], T of the longest prompt of all) -> the places for these alone; for a
    method whose places do not act on each sequence and token alike.
    """

    tokens: Callable[[int, Tensor], Tensor] | None = None
    attention: Callable[[int, str, Tensor], Tensor] | None = None
    output: Callable[[int, Tensor], Tensor] | None = None
    of_part: Callable[[Tensor, int], Places] | None = None


class Norm:
    """A frozen layer norm; computed in fp32 whatever the precision of the matrix products."""

    def __init__(self, module: Any) -> None:
        self.identity = isinstance(module, nn.Identity)
        if not self.identity:
            self.weight, self.bias, self.eps = module.weight.detach().float(), module.bias.detach().float(), module.eps

    def __call__(self, x: Tensor) -> Tensor:
        return self.of_sum(x, (), torch.float32)[1]

    def of_sum(self, x: Tensor, terms: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``x`` plus ``terms``, [...,W] each, and the norm of that in ``dtype``."""
        if self.identity:
            return (x := total(x, terms)), x.to(dtype)
        return pointwise.add_norm(x, terms, self.weight, self.bias, self.eps, dtype)


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
        self.activation = pointwise.activation(mlp.gelu)
        self.gamma1, self.gamma2 = (getattr(ls, "gamma", None) for ls in (module.ls_1, module.ls_2))

    def __call__(
        self,
        x: Tensor,
        terms: Sequence[Tensor],
        causal: bool,
        pool: Tensor | int | None = None,
        add: Callable[[str, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The block on ``x`` plus ``terms``: (LN1 of that, two tensors whose sum is the block's output), [N,T,W] each.

        Sums wait for the norm behind them, which makes them on its way. With ``pool`` ([N], or one for all), of the pooled token alone:
        [N,1,W]. ``add``: ("q" | "k" | "v", LN1) -> what to add to that projection.
        """
        x, normed = self.norm1.of_sum(x, terms, self.in_weight.dtype)  # once, for the projections and whatever a method does with it
        every = normed
        width = x.shape[-1]
        if pool is None:
            q, k, v = F.linear(normed, self.in_weight, self.in_bias).chunk(3, dim=-1)
            mask = None
        else:
            k, v = F.linear(normed, self.in_weight[width:], self.in_bias[width:]).chunk(2, dim=-1)
            # The pooled token sees itself and what came before it, as in the full causal mask.
            mask = (torch.arange(x.shape[1], device=x.device) <= pool[:, None])[:, None, None] if causal else None  # type: ignore[index]
            x, normed = take(x, pool), take(normed, pool)
            q = F.linear(normed, self.in_weight[:width], self.in_bias[:width])
        if add is not None:
            q, k, v = q + add("q", normed), k + add("k", every), v + add("v", every)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        q, k = self.turned(q, k, pool)
        mixed = attention(q, k, v, mask, causal and pool is None)
        mixed = F.linear(self.normed_mixture(mixed.transpose(1, 2).flatten(2)), self.out_weight, self.out_bias)
        x, before = self.norm2.of_sum(x, (mixed if self.gamma1 is None else mixed * self.gamma1,), self.fc_weight.dtype)
        hidden = self.mlp(before)
        return normed, x, hidden if self.gamma2 is None else hidden * self.gamma2

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Its layer norms."""
        return self.norm1, self.norm2

    def turned(self, q: Tensor, k: Tensor, pool: Tensor | int | None) -> tuple[Tensor, Tensor]:
        """Queries (of the token ``pool`` alone, or of all) and keys of all tokens [N,H,T,W/H], where these say their positions."""
        return q, k

    def normed_mixture(self, x: Tensor) -> Tensor:
        """What attention mixes [N,T,W], before its projection."""
        return x

    def mlp(self, x: Tensor) -> Tensor:
        """[N,T,W] -> [N,T,W], without layer scale."""
        return F.linear(self.activation(F.linear(x, self.fc_weight, self.fc_bias)), self.proj_weight, self.proj_bias)


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


def total(x: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """``x`` plus ``terms``, one after another."""
    for term in terms:
        x = x + term
    return x


def laid_out(pixels: Tensor, high: int, wide: int) -> Tensor:
    """[N,3,S,S] -> what lies in each patch of ``high`` x ``wide`` pixels [N,T-1,3*high*wide], without what is left over at two edges."""
    rows, columns = pixels.shape[-2] // high, pixels.shape[-1] // wide
    whole = pixels[..., : rows * high, : columns * wide].unflatten(-1, (columns, wide)).unflatten(-3, (rows, high))
    return whole.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def take(x: Tensor, index: Tensor | int) -> Tensor:
    """[N,T,W] -> [N,1,W]: one token of each sequence, ``index`` [N], or the same of all."""
    if isinstance(index, int):
        return x.narrow(1, index, 1).contiguous()  # of its own: a stem that is kept must not hold all tokens
    return x.gather(1, index.view(-1, 1, 1).expand(-1, 1, x.shape[-1]))


class Tower:
    """A stack of frozen blocks. Blocks are numbered from 1, as in the paper."""

    def __init__(self, blocks: Sequence[Block], causal: bool, width: int) -> None:
        self.blocks = list(blocks)
        self.causal = causal
        self.width = width

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def stem(self, x: Tensor, pool: Tensor | int | None, blocks: int) -> TowerStem:
        """Run the lowest ``blocks`` blocks as they are.

        Args:
            x: embedded tokens [N,T,W].
            pool: [N] index of the pooled token, or one for all sequences; None to keep all tokens to the end.
        """
        normed: Tensor | None = None
        terms: list[Tensor] = []
        for number in range(1, blocks + 1):
            normed, x, out = self._run(number, x, terms, pool)
            terms = [out]
        return TowerStem(total(x, terms), normed, pool, blocks)

    def finish(self, stem: TowerStem, places: Places) -> Tensor:
        """From a stem to the top with ``places`` acting in the blocks that are left; [N,T or 1,W].

        The output place acts on the last block of the stem, too: what is frozen about it has been done there.
        """
        x, terms = stem.output, []  # their sum is the output of a block
        if places.output is not None and stem.normed is not None:
            terms.append(places.output(stem.blocks, stem.normed))
        for number in range(stem.blocks + 1, self.depth + 1):
            if places.tokens is not None:
                x, terms = places.tokens(number, total(x, terms)), []
            normed, x, out = self._run(number, x, terms, stem.pool, places.attention)
            terms = [out] if places.output is None else [out, places.output(number, normed)]
        return total(x, terms)

    def _run(
        self, number: int, x: Tensor, terms: Sequence[Tensor], pool: Tensor | int | None, attention=None
    ) -> tuple[Tensor, Tensor, Tensor]:
        add = None if attention is None else lambda part, normed: attention(number, part, normed)
        return self.blocks[number - 1](x, terms, self.causal, pool if number == self.depth else None, add)


class VisualTower(Tower):
    """A ViT; `embed` -> `stem` -> `finish` -> `features`."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        super().__init__([Block(block, dtype) for block in module.transformer.resblocks], False, module.transformer.width)
        self.patch_weight = module.conv1.weight.detach().float()
        self.class_token, self.positions = module.class_embedding.detach().float(), module.positional_embedding.detach().float()
        self.norm_pre, self.norm_post = Norm(module.ln_pre), Norm(module.ln_post)
        self.projection = module.proj.detach().float()
        self.pool_type, self.norm_after_pool = module.pool_type, module.final_ln_after_pool

    @property
    def embedding(self) -> int:
        """D, the width of image features."""
        return self.projection.shape[1]

    def own_tensors(self) -> Iterator[Tensor]:
        """The frozen tensors that are in no block and in no norm that every tower has."""
        yield from (self.patch_weight, self.class_token, self.positions, self.projection)

    def embed(self, pixels: Tensor) -> tuple[Tensor, int | None]:
        """[N,3,S,S] normalised pixels -> tokens [N,T,W] and the index of the pooled token, the same of all images."""
        patches = self.patches(pixels)
        tokens = torch.cat([self.class_token.expand(len(pixels), 1, -1).to(patches.dtype), patches], dim=1)
        return self.norm_pre(tokens + self.positions), 0 if self.pool_type == "tok" else None

    def patches(self, pixels: Tensor) -> Tensor:
        """[N,3,S,S] -> the patches [N,T-1,W], embedded: a convolution whose steps are as wide as what it sees.

        On a GPU as one product of what lies in each patch: cuDNN takes a kernel for this convolution that is many times slower.
        """
        high, wide = self.patch_weight.shape[-2:]
        if not pixels.is_cuda:
            return F.conv2d(pixels, self.patch_weight, stride=(high, wide)).flatten(2).transpose(1, 2)
        return F.linear(laid_out(pixels, high, wide), self.patch_weight.flatten(1))

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
    """CLIP's text transformer; `embed` -> `stem` -> `finish` -> `features`.

    ``keeps``: bytes that it keeps at most for the gradients of one pass over class prompts. ``block_keeps``: about how many it keeps of a
    token and block.
    """

    def __init__(self, module: Any, pool_type: str, eos_id: int, dtype: torch.dtype, keeps: float = float("inf")) -> None:
        blocks = [Block(block, dtype) for block in module.transformer.resblocks]
        super().__init__(blocks, module.attn_mask is not None, module.transformer.width)
        self.keeps = keeps
        # Two inputs of norms in fp32; LN1, queries, keys, values and their mixture; the hidden layer before and after a quick GELU's gate.
        hidden = self.blocks[0].fc_weight.shape[0]
        self.block_keeps = 2 * 4 * self.width + (5 * self.width + 2 * hidden) * dtype.itemsize
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

    def lengths(self, tokens: Tensor) -> list[int]:
        """How many of its tokens [K,T] each prompt needs: under a causal mask nothing after the pooled one is ever read.

        On the meta device it is not known which that is, and all are needed.
        """
        if not self.causal or self.pool_type == "last" or tokens.is_meta:
            return [tokens.shape[1]] * len(tokens)
        return (self.pool_index(tokens) + 1).tolist()

    def cut(self, tokens: Tensor) -> Tensor:
        """Drop the columns that no prompt needs."""
        return tokens[:, : max(self.lengths(tokens))]

    def parts(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Prompts [K,T] in parts of like length, each without columns that it does not need: their numbers [n] and tokens [n,T']."""
        lengths, shorter, found = self.lengths(tokens), 0, []
        for longest in lengths_of_parts(lengths):
            numbers = [k for k, length in enumerate(lengths) if shorter < length <= longest]
            rows = torch.tensor(numbers, device=tokens.device)
            found.append((rows, tokens[rows, :longest] if len(numbers) < len(lengths) else tokens[:, :longest]))
            shorter = longest
        return found

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[N,T] token ids, T up to the context length -> tokens [N,T,W] and the index of the pooled token [N]."""
        x = self.token_embedding[tokens] + self.positions[: tokens.shape[1]]
        return x, self.pool_index(tokens)

    def finish(self, stem: TowerStem | PromptStem, places: Places) -> Tensor:
        """As that of any tower; of class prompts [C*K,1,W], client by client in the classes' order, in whatever parts they go through.

        Where more would be kept for the gradients than ``keeps``, some parts are computed again when gradients are taken.
        """
        if isinstance(stem, TowerStem):
            return super().finish(stem, places)
        learns = torch.is_grad_enabled()
        plan = list(stem.planned((self.depth - stem.blocks) * self.block_keeps, self.keeps if learns else float("inf")))

        def finished(part: Part) -> Tensor:
            own = places if len(plan) == 1 or places.of_part is None else places.of_part(part.classes, stem.longest)
            return super(TextTower, self).finish(part.stem.repeat(stem.clients), own)

        return stem.in_order(
            [finished(part) if stays else checkpoint(finished, part, use_reentrant=False, preserve_rng_state=False) for part, stays in plan]
        )

    def features(self, x: Tensor) -> Tensor:
        """The pooled token of the last block [N,1,W] -> text features [N,D], not normalised."""
        pooled = self.norm_final(x[:, 0])
        if self.projection is None:
            return pooled
        projected = pooled @ self.projection
        return projected if self.projection_bias is None else projected + self.projection_bias
