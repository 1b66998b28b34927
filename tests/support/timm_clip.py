"""Small open_clip models whose image tower is timm's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import open_clip
import torch
from open_clip import timm_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import Tensor, nn

from pfedmma import rng

VISION = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none", "image_size": 32}
TEXT = {"context_length": 20, "width": 24, "heads": 2, "layers": 3}
TRUNK = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
SIGLIP = {"class_token": False}
SIGLIP_TEXT = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
# MobileCLIP-B's: three convolutions, positions of the patches alone, and a class token that is pooled.
CONVOLUTIONS = {"channels": (8, 8, 32), "stride": (2, 2, 2), "kernel_size": (2, 2, 2), "padding": 0, "act_layer": nn.GELU}


def timm_clip(
    trunk: dict[str, Any], text: dict[str, Any], vision: dict[str, Any], kind: type[nn.Module] = VisionTransformer, **model: Any
) -> nn.Module:
    """A CLIP as open_clip builds it around timm's ViT, or another ``kind`` of tower, of a small size, every tensor of it random."""

    def small(name: str, **options: Any) -> nn.Module:
        known = {key: options[key] for key in ("num_classes", "global_pool") if key in options}
        made = kind(**TRUNK | trunk | known)
        made.default_cfg = {}
        return made

    with torch.random.fork_rng(devices=[]), mock.patch.object(timm_model.timm, "create_model", small):
        torch.manual_seed(0)
        clip = open_clip.CustomTextCLIP(embed_dim=32, vision_cfg=VISION | vision, text_cfg=TEXT | text, **model)
    generator = rng.generator(0, "weights")
    with torch.no_grad():
        of_batch_norms = [buffer for name, buffer in clip.named_buffers() if name.endswith(("running_mean", "running_var"))]
        for tensor in (*clip.parameters(), *of_batch_norms):
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator).abs())
    return clip.eval().requires_grad_(False)


def siglip(act: type[nn.Module] = nn.GELU, **text: Any) -> nn.Module:
    """A small SigLIP: attention pooling, no class token, no causal mask, the last token pooled, and a bias of the logits."""
    return timm_clip({**SIGLIP, "act_layer": act}, SIGLIP_TEXT | text, {}, init_logit_bias=-10.0)


def mobileclip() -> nn.Module:
    """A small MobileCLIP-B."""

    def embed(**options: Any) -> nn.Module:
        return HybridEmbed(ConvStem(**CONVOLUTIONS), **options | {"patch_size": 1, "proj": False})

    return timm_clip({"embed_layer": embed, "no_embed_class": True}, {}, {"timm_pool": "token", "timm_proj": None})


def eva01(**trunk: Any) -> nn.Module:
    """A small EVA01."""
    return timm_clip(trunk, {}, {"timm_pool": "token", "timm_proj": None}, Eva)


def eva02(**trunk: Any) -> nn.Module:
    """A small EVA02-B: projections apart, SwiGLU, norms within, and positions in queries and keys."""
    parts = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True, "mlp_ratio": 4 * 2 / 3}
    return eva01(**parts | {"use_rot_pos_emb": True, "ref_feat_shape": (3, 3)} | trunk)


class Words:
    """A tokenizer such as open_clip's HFTokenizer: no start, padded to the context."""

    context = 20

    def clean_fn(self, text: str) -> str:
        return text.lower()

    def tokenizer(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[2 + sum(map(ord, word)) for word in text.split()] + [1])

    def __call__(self, texts: list[str]) -> Tensor:
        ids = [self.tokenizer(self.clean_fn(text)).input_ids[: self.context] for text in texts]
        return torch.tensor([row + [0] * (self.context - len(row)) for row in ids])
