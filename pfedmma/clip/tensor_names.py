"""Names of tensors in files of other tools, as open_clip has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from pfedmma.clip.file_kinds import NoWeights

# Of DistributedDataParallel, torch.compile, FSDP and activation checkpointing; they may stand anywhere, in any order.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
SCALE, BIAS = "logit_scale", "logit_bias"

# transformers' CLIPModel.
_TOWERS = {"text": "transformer", "vision": "visual.transformer"}
_LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d{1,4})\.(.+)\.(weight|bias)")
_IN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # one matrix in open_clip, in this order
_TURNED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}  # [out, in] there
_OTHERS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # spelled so there
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}


def shown(name: str) -> str:
    """The name of a tensor or file as a message may show it."""
    return re.sub(r"[^\x20-\x7e]", "?", name)[:80]


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the names that wrappers put before, or into, theirs, and without a prefix that all share.

    Raises:
        NoWeights: two tensors have the same name then.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in named:
            raise NoWeights(f"it holds {shown(short)} twice, with and without the prefix of a wrapper")
        named[short] = tensor
    scales = [name for name in named if name.rsplit(".", 1)[-1] == SCALE]
    prefix = scales[0].removesuffix(SCALE) if len(scales) == 1 else ""  # where CLIP is one module of a larger program's
    if prefix and all(name.startswith(prefix) for name in named):
        return {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    return named


def is_of_transformers(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("vision_model.", "text_model.")) for name in state)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers' CLIPModel in open_clip's layout; names that it does not have are left as they are.

    Raises:
        NoWeights: it is no whole CLIPModel.
    """
    for name in (*_TURNED, *_OTHERS):
        if name not in state:
            raise NoWeights(f"it is in the layout of transformers and lacks {name}; give the file of a whole CLIPModel")
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = _LAYER.fullmatch(name)
        if found is not None and found[3] in _PARTS:
            block = f"{_TOWERS[found[1]]}.resblocks.{int(found[2])}.attn.in_proj_{found[4]}"
            if block not in made:
                made[block] = _joined(state, name, found[3])
        elif found is not None and found[3] in _IN_LAYER:
            made[f"{_TOWERS[found[1]]}.resblocks.{int(found[2])}.{_IN_LAYER[found[3]]}.{found[4]}"] = tensor
        elif name in _TURNED:
            made[_TURNED[name]] = tensor.T.contiguous() if tensor.dim() == 2 else tensor
        elif not name.endswith(".embeddings.position_ids"):  # 0, 1, 2, ...
            made[_OTHERS.get(name, name)] = tensor
    return made


def _joined(state: Mapping[str, Tensor], name: str, part: str) -> Tensor:
    """The projections of queries, keys and values as one; ``name`` is that of the ``part`` of them."""
    names = [name.replace(part, other) for other in _PARTS]
    lacking = next((other for other in names if other not in state), None)
    if lacking is not None:
        raise NoWeights(f"it is in the layout of transformers and lacks {lacking}; give the file of a whole CLIPModel")
    shapes = {(tuple(state[other].shape), state[other].dtype) for other in names}
    if len(shapes) > 1 or state[name].dim() == 0:
        raise NoWeights(f"{shown(name)} in it and its neighbours for queries, keys and values are of several shapes or types")
    return torch.cat([state[other] for other in names])
