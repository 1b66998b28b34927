"""Learned prompts of one client, the plain way: through open_clip's own modules, all tokens of all blocks."""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pfedmma.clip.backbone import Backbone

NAMES = ("cat", "red_fish", "fern")  # prompts of two lengths


def hollow(name: str) -> Backbone:
    """An open_clip model without memory for its weights: all shapes, in no time."""
    with torch.device("meta"):
        return Backbone.freeze(open_clip.create_model(name, device="meta"), name)


def text_features(clip: nn.Module, names: Sequence[str], context: Tensor) -> Tensor:
    """Normalised features [K,D] of "[SOS] context name ." with ``context`` [L,W]."""
    tokenizer = open_clip.SimpleTokenizer(context_length=clip.context_length)
    length = len(context)
    tokens = tokenizer([" ".join(["X"] * length) + f" {name.replace('_', ' ')}." for name in names])
    embedded = clip.token_embedding(tokens)
    embedded = torch.cat([embedded[:, :1], context.expand(len(names), -1, -1), embedded[:, 1 + length :]], dim=1)
    x = clip.ln_final(clip.transformer(embedded + clip.positional_embedding, attn_mask=clip.attn_mask))
    return F.normalize(x[torch.arange(len(names)), tokens.argmax(dim=-1)] @ clip.text_projection, dim=-1)
