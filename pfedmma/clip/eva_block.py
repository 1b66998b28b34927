"""The blocks of EVA-CLIP (EVA01, EVA02-B and -L) as timm has them: rotary positions, norms within attention and MLP, and SwiGLU.

Shape legend: N sequences, T tokens, W width, H heads, F width of the hidden layer.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma.clip.towers import Block, Norm
from pfedmma.system.lazy import Library

eva, layers = Library("timm.models.eva"), Library("timm.layers")


class EvaBlock(Block):
    """A frozen ``EvaBlock`` of timm.

    ``positions``: sine and cosine of each token [T,2,W/H], None without rotary positions. Tokens beyond T (learned prompts) are not turned,
    as the class token is not.
    """

    def __init__(self, module: Any, positions: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(_as_open_clips(module), dtype)
        self.positions = positions
        self.norm_mixed, self.norm_hidden = Norm(module.attn.norm), Norm(module.mlp.norm)
        self.gated = hasattr(module.mlp, "fc1_g")

    @property
    def norms(self) -> tuple[Norm, ...]:
        return (*super().norms, self.norm_mixed, self.norm_hidden)

    def turned(self, q: Tensor, k: Tensor, pool: Tensor | int | None) -> tuple[Tensor, Tensor]:
        if self.positions is None:
            return q, k
        of_queries = self.positions if pool is None else self.positions[pool : pool + 1]  # type: ignore[operator, misc]
        return turned(q, of_queries), turned(k, self.positions)

    def normed_mixture(self, x: Tensor) -> Tensor:
        return self.norm_mixed.of_sum(x.float(), (), x.dtype)[1]

    def mlp(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.fc_weight, self.fc_bias)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate) * hidden
        else:
            hidden = self.activation(hidden)
        hidden = self.norm_hidden.of_sum(hidden.float(), (), x.dtype)[1]
        return F.linear(hidden, self.proj_weight, self.proj_bias)


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """[N,H,T',W/H] with neighbouring numbers turned in pairs, by angles with the sine and cosine ``positions`` [T,2,W/H], T <= T'."""
    count = len(positions)
    sine, cosine = positions.unbind(dim=1)
    placed = x[:, :, :count]
    pairs = torch.stack([-placed[..., 1::2], placed[..., ::2]], dim=-1).flatten(-2)
    out = (placed * cosine + pairs * sine).to(x.dtype)
    return out if x.shape[2] == count else torch.cat([out, x[:, :, count:]], dim=2)


def positions_of(trunk: Any) -> Tensor | None:
    """Sine and cosine of each token of a tower [T,2,W/H], fp32; those of the class token are 0 and 1. None without rotary positions."""
    if trunk.rope is None:
        return None
    patches = torch.stack(trunk.rope.get_embed().detach().float().chunk(2, dim=-1), dim=1)
    still = torch.stack([torch.zeros_like(patches[:1, 0]), torch.ones_like(patches[:1, 0])], dim=1)
    return torch.cat([still.expand(trunk.num_prefix_tokens, -1, -1), patches])


def is_plain(block: Any, rope: Any) -> bool:
    """Whether `EvaBlock` computes what this block of a tower with this ``rope`` does."""
    if (
        type(block) is not eva.EvaBlock
        or type(block.attn) is not eva.EvaAttention
        or not isinstance(block.mlp, (layers.Mlp, layers.SwiGLU))
    ):
        return False
    if rope is not None and type(rope) is not layers.RotaryEmbeddingCat:
        return False
    attn = block.attn
    plain = all(isinstance(getattr(attn, name, nn.Identity()), nn.Identity) for name in ("q_norm", "k_norm"))
    biased = attn.q_bias is not None if attn.qkv is not None else attn.q_proj.bias is not None
    return plain and biased and getattr(attn, "gate", None) is None and not getattr(attn, "rotate_half", False)


def _as_open_clips(block: Any) -> SimpleNamespace:
    """timm's block under the names of open_clip's; keys have no bias, which is one of zeros."""
    attn, mlp = block.attn, block.mlp
    if attn.qkv is not None:
        weight, (first, last) = attn.qkv.weight.detach(), (attn.q_bias, attn.v_bias)
    else:
        weight, (first, last) = _joined([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight]), (attn.q_proj.bias, attn.v_proj.bias)
    fc = (
        mlp.fc1
        if hasattr(mlp, "fc1")
        else SimpleNamespace(weight=_joined([mlp.fc1_g.weight, mlp.fc1_x.weight]), bias=_joined([mlp.fc1_g.bias, mlp.fc1_x.bias]))
    )
    return SimpleNamespace(
        attn=SimpleNamespace(
            num_heads=attn.num_heads,
            in_proj_weight=weight,
            in_proj_bias=_joined([first, torch.zeros_like(first), last]),
            out_proj=attn.proj,
        ),
        mlp=SimpleNamespace(c_fc=fc, c_proj=mlp.fc2, gelu=mlp.act),
        **{"ln_1": block.norm1, "ln_2": block.norm2},
        **{"ls_1": SimpleNamespace(gamma=block.gamma_1), "ls_2": SimpleNamespace(gamma=block.gamma_2)},
    )


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach() for tensor in tensors])
