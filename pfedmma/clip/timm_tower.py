"""Image towers that open_clip takes from timm: ViTs with attention pooling (SigLIP, SigLIP 2) or a class token (MobileCLIP-B, EVA-CLIP).

Most of timm's blocks compute what open_clip's do under other names, so they are read under open_clip's, and adapters find the same places;
for EVA's see `pfedmma.clip.eva_block`.
SigLIP has no class token: one learned query attends to all tokens of the last block, which therefore all are computed.

Shape legend: N images, T tokens, W width, H heads, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma.clip import eva_block, pointwise
from pfedmma.clip.towers import Block, Norm, Tower, VisualTower
from pfedmma.system.errors import UserError
from pfedmma.system.lazy import Library

vit, layers = Library("timm.models.vision_transformer"), Library("timm.layers")
eva, hybrid = Library("timm.models.eva"), Library("timm.models.vision_transformer_hybrid")

POOLS = ("map", "token", "avg")
_NONE = nn.Identity()


class TimmTower(VisualTower):
    """A ViT of timm; `embed` -> `stem` -> `finish` -> `features`, as of open_clip's own."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        trunk = module.trunk
        Tower.__init__(self, _blocks(trunk, dtype), False, trunk.embed_dim)
        *below, last = _convolutions(trunk.patch_embed)
        self.stem_layers = [StemLayer(layer) for layer in below]
        self.patch_weight, self.patch_bias = last.weight.detach().float(), _bias(last)
        self.class_token = None if trunk.cls_token is None else trunk.cls_token.detach().float()
        self.positions, self.class_has_position = trunk.pos_embed.detach().float()[0], not trunk.no_embed_class
        self.norm_pre, self.norm_post = Norm(trunk.norm_pre), Norm(trunk.norm)
        self.pool_type, self.norm_after_pool = {"token": "tok"}.get(trunk.global_pool, trunk.global_pool), False
        self.attention_pool = AttentionPool(trunk.attn_pool, dtype) if trunk.global_pool == "map" else None
        head = next((layer for layer in (trunk.head, *module.head) if isinstance(layer, nn.Linear)), None)
        self.head = None if head is None else (head.weight.detach().float(), _bias(head))
        self._beside_blocks = list(_beside_blocks(module))

    @property
    def embedding(self) -> int:
        return self.width if self.head is None else len(self.head[0])

    def own_tensors(self) -> Iterator[Tensor]:
        yield from self._beside_blocks

    def embed(self, pixels: Tensor) -> tuple[Tensor, int | None]:
        x = self.patches(pixels)
        if self.class_token is None:
            return self.norm_pre(x + self.positions), None
        first = self.class_token.expand(len(x), -1, -1).to(x.dtype)
        x = torch.cat([first, x], dim=1) + self.positions if self.class_has_position else torch.cat([first, x + self.positions], dim=1)
        return self.norm_pre(x), 0 if self.pool_type == "tok" else None

    def patches(self, pixels: Tensor) -> Tensor:
        """[N,3,S,S] -> the patches [N,T,W] without a class token, embedded."""
        for layer in self.stem_layers:
            pixels = layer(pixels)
        patches = super().patches(pixels)
        return patches if self.patch_bias is None else patches + self.patch_bias

    def features(self, x: Tensor) -> Tensor:
        """Tokens of the last block [N,T or 1,W] -> image features [N,D], not normalised."""
        if self.attention_pool is not None:
            pooled = self.attention_pool(x, self.norm_post)
        elif self.pool_type == "tok":
            pooled = self.norm_post(x[:, 0])
        else:
            pooled = self.norm_post(x)[:, 0 if self.class_token is None else 1 :].mean(dim=1)
        return self._embedded(pooled)

    def patch_features(self, x: Tensor) -> Tensor:
        if self.attention_pool is not None:
            raise UserError(
                "method: the image tower pools by attention, so that its patches have no features of their own, which fedotp needs"
            )
        return self._embedded(self.norm_post(x[:, 0 if self.class_token is None else 1 :]))

    def _embedded(self, x: Tensor) -> Tensor:
        return x if self.head is None else F.linear(x, *self.head)


class StemLayer:
    """One of the convolutions below that of the patches: timm's ``ConvNormAct`` with a frozen batch norm."""

    def __init__(self, module: Any) -> None:
        conv, norm = module.conv, module.bn
        self.weight, self.bias, self.stride = conv.weight.detach().float(), _bias(conv), conv.stride
        self.mean, self.variance, self.eps = norm.running_mean.float(), norm.running_var.float(), norm.eps
        self.scale, self.shift, self.activation = norm.weight.detach().float(), norm.bias.detach().float(), norm.act

    def __call__(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, self.stride)
        return self.activation(F.batch_norm(x, self.mean, self.variance, self.scale, self.shift, eps=self.eps))


class AttentionPool:
    """timm's ``AttentionPoolLatent`` with one learned query: attention over all tokens, a projection, and an MLP beside it.

    The query is the same for all images. So it is multiplied into the keys' weights once, and values are taken of the mixed tokens: H
    products a token instead of 2 W, with the same result up to rounding. The keys' bias adds the same to a head's scores: it drops out.
    """

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        def frozen(linear: Any) -> tuple[Tensor, Tensor]:
            return linear.weight.detach().to(dtype), linear.bias.detach().to(dtype)

        heads = module.num_heads
        weights, biases = module.kv.weight.detach().float(), module.kv.bias.detach().to(dtype)
        keys, values = (weight.unflatten(0, (heads, -1)) for weight in weights.chunk(2))
        with torch.no_grad():
            query = F.linear(module.latent[0, 0].float(), module.q.weight.float(), module.q.bias.float()).view(heads, -1)
            self.scores = (torch.einsum("hd,hdw->hw", query, keys) * module.scale).to(dtype)  # [H,W]
        self.values, self.values_bias = values.to(dtype), biases.chunk(2)[1]  # [H,W/H,W], [W]
        self.out, self.norm = frozen(module.proj), Norm(module.norm)
        self.fc1, self.fc2, self.activation = frozen(module.mlp.fc1), frozen(module.mlp.fc2), pointwise.activation(module.mlp.act)

    def __call__(self, x: Tensor, norm: Norm) -> Tensor:
        """Tokens [N,T,W] and the norm that they go through first -> [N,W], fp32."""
        dtype = self.scores.dtype
        normed = norm.of_sum(x, (), dtype)[1]
        shares = F.linear(normed, self.scores).float().softmax(dim=1).to(dtype)  # [N,T,H]
        mixed = torch.einsum("nhw,hdw->nhd", shares.transpose(1, 2) @ normed, self.values).flatten(1) + self.values_bias
        x, before = self.norm.of_sum(F.linear(mixed, *self.out).float(), (), dtype)
        return x + F.linear(self.activation(F.linear(before, *self.fc1)), *self.fc2)


def _blocks(trunk: Any, dtype: torch.dtype) -> list[Block]:
    if type(trunk) is not eva.Eva:
        return [Block(as_open_clips(block), dtype) for block in trunk.blocks]
    positions = eva_block.positions_of(trunk)
    return [eva_block.EvaBlock(block, positions, dtype) for block in trunk.blocks]


def as_open_clips(block: Any) -> SimpleNamespace:
    """timm's ``Block`` under the names of open_clip's ``ResidualAttentionBlock``."""
    attn, mlp = block.attn, block.mlp
    return SimpleNamespace(
        attn=SimpleNamespace(num_heads=attn.num_heads, in_proj_weight=attn.qkv.weight, in_proj_bias=attn.qkv.bias, out_proj=attn.proj),
        mlp=SimpleNamespace(c_fc=mlp.fc1, c_proj=mlp.fc2, gelu=mlp.act),
        **{"ln_1": block.norm1, "ln_2": block.norm2, "ls_1": block.ls1, "ls_2": block.ls2},
    )


def refusal(module: Any) -> str:
    """What a tower of timm is that `TimmTower` cannot run, to be put behind "the image tower of ..."; empty if it can."""
    trunk = module.trunk
    if type(trunk) not in (vit.VisionTransformer, eva.Eva):
        return f"is timm's {type(trunk).__name__}"
    if not all(eva_block.is_plain(block, trunk.rope) if type(trunk) is eva.Eva else _is_plain(block) for block in trunk.blocks):
        return "has custom blocks"
    if not _is_known_embedding(trunk):
        return "embeds its patches in a way of its own"
    heads = [layer for layer in (trunk.head, *module.head) if not isinstance(layer, (nn.Identity, nn.Dropout))]
    if not _is_known_pool(trunk) or len(heads) > 1 or any(type(layer) is not nn.Linear for layer in heads):
        return "pools its tokens in a way of its own"
    return ""


def _is_plain(block: Any) -> bool:
    if type(block) is not vit.Block or type(block.attn) is not vit.Attention or type(block.mlp) is not layers.Mlp:
        return False
    attn, mlp = block.attn, block.mlp
    added = (getattr(part, name, _NONE) for part, name in ((attn, "q_norm"), (attn, "k_norm"), (attn, "norm"), (mlp, "norm")))
    biased = all(layer.bias is not None for layer in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2))
    return biased and getattr(attn, "gate", None) is None and all(isinstance(norm, nn.Identity) for norm in added)


def _is_known_embedding(trunk: Any) -> bool:
    """Convolutions whose steps are as wide as what they see, and learned positions."""
    embed = trunk.patch_embed
    stem = getattr(embed, "backbone", None)
    if not (type(embed) is layers.PatchEmbed or (isinstance(stem, hybrid.ConvStem) and isinstance(embed.proj, nn.Identity))):
        return False
    if (
        trunk.pos_embed is None
        or trunk.reg_token is not None
        or trunk.dynamic_img_size
        or not isinstance(getattr(embed, "norm", _NONE), nn.Identity)
    ):
        return False
    *below, last = _convolutions(embed)
    convolutions = [*(layer.conv for layer in below), last]
    normed = all(isinstance(layer.bn, layers.BatchNormAct2d) for layer in below)
    return normed and all(conv.kernel_size == conv.stride and conv.padding == (0, 0) for conv in convolutions)


def _is_known_pool(trunk: Any) -> bool:
    if trunk.global_pool not in POOLS or not isinstance(trunk.fc_norm, nn.Identity):
        return False
    if trunk.global_pool != "map":
        return not getattr(trunk, "pool_include_prefix", False)
    pool = trunk.attn_pool
    plain = pool.pos_embed is None and isinstance(pool.q_norm, nn.Identity) and isinstance(pool.q, nn.Linear)
    return plain and pool.latent_len == 1 and pool.mlp is not None and pool.kv.bias is not None and trunk.cls_token is None


def _convolutions(embed: Any) -> list[Any]:
    """The layers of the stem, and the convolution of the patches above them."""
    if not hasattr(embed, "backbone"):
        return [embed.proj]
    *below, last = embed.backbone
    return [*below, last.conv]


def _beside_blocks(module: Any) -> Iterator[Tensor]:
    """All tensors but those of the blocks, and of norms that every tower has, by name."""
    beside: Callable[[str], bool] = lambda name: not name.startswith(("trunk.blocks.", "trunk.norm.", "trunk.norm_pre."))  # noqa: E731
    yield from (tensor.detach() for name, tensor in sorted(module.state_dict(keep_vars=True).items()) if beside(name) and tensor.dim())


def _bias(layer: Any) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach().float()
