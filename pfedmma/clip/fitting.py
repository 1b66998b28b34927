"""Putting weights into an open_clip model, or saying why they do not fit, the telling tensors first."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from pfedmma.clip.file_kinds import NoWeights
from pfedmma.clip.tensor_names import BIAS, SCALE, shown
from pfedmma.system.lazy import Library

open_clip, modules = Library("open_clip"), Library("open_clip.model")

_MOST = 4  # names in a message


def put(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Put tensors by open_clip's names into the CLIP ``name``, position embeddings resized where the image or the context has another size.

    Raises:
        NoWeights: they are those of another model.
    """
    own, state = model.state_dict(), dict(tensors)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = modules.convert_to_custom_text_state_dict(state)
    for number in (SCALE, BIAS):  # with or without an axis of its own
        if number in own and number in state and state[number].numel() == 1:
            state[number] = state[number].reshape(own[number].shape)
    _refuse_misfit(own, state, name)
    modules.resize_pos_embed(state, model)
    modules.resize_text_pos_embed(state, model)
    model.load_state_dict(state)


def _refuse_misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str) -> None:
    wrong = []
    if lacking := [tensor for tensor in own if tensor not in state]:
        wrong.append(f"it lacks {_listed(lacking, own)}")
    if more := [tensor for tensor in state if tensor not in own]:
        wrong.append(f"it holds {_listed(more, state)}, which {name} has not")
    both = [tensor for tensor in own if tensor in state]
    if other := [tensor for tensor in both if not _fits(tensor, state[tensor], own[tensor])]:
        first = min(other, key=lambda tensor: tensor != "visual.conv1.weight")  # says most of a model
        count = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        wrong.append(f"size mismatch for {first}: {list(state[first].shape)} in it, {list(own[first].shape)} in {name}{count}")
    if wrong:
        names = _names_that_fit(state)
        raise NoWeights("; ".join([*wrong, f"it fits backbone.name={' or '.join(names)}"] if names else wrong))
    for tensor in both:
        if own[tensor].is_floating_point() and not state[tensor].is_floating_point():
            raise NoWeights(f"its {tensor} is of {str(state[tensor].dtype).removeprefix('torch.')}; give weights that are not quantized")
    grid = state.get("visual.positional_embedding")
    if grid is not None and len(grid) != len(own["visual.positional_embedding"]) and math.isqrt(len(grid) - 1) ** 2 != len(grid) - 1:
        raise NoWeights(f"its visual.positional_embedding is no square grid and one token, but {len(grid)} rows")


def _fits(name: str, tensor: Tensor, own: Tensor) -> bool:
    """Whether it has the shape of the model's own; position embeddings may be longer or shorter, for they are resized."""
    resized = name.endswith("positional_embedding") and tensor.dim() == own.dim() and len(tensor) > 1
    return tensor.shape[1:] == own.shape[1:] if resized else tensor.shape == own.shape


def _listed(names: Iterable[str], among: Iterable[str]) -> str:
    """A few names that say what all ``names`` are: those of a tower or block of which all are there, as "visual.* (152 tensors)"."""
    left, everything = list(names), list(among)
    shown_names: list[str] = []
    for depth in (1, 3, 4):  # a tower, or what lies in it: visual.transformer.resblocks.7 has four parts
        for start in dict.fromkeys(".".join(name.split(".")[:depth]) + "." for name in left if name.count(".") >= depth):
            group = [name for name in left if name.startswith(start)]
            block = start.split(".")[-2].isdigit() or depth == 1
            if len(group) > 1 and block and len(group) == sum(name.startswith(start) for name in everything):
                shown_names.append(f"{shown(start)}* ({len(group)} tensors)")
                left = [name for name in left if not name.startswith(start)]
    shown_names += [shown(name) for name in sorted(left, key=lambda name: ("resblocks" in name, len(name)))]
    rest = len(shown_names) - _MOST
    return ", ".join(shown_names[:_MOST]) + (f" and {rest} more" if rest > 0 else "")


def _names_that_fit(state: Mapping[str, Tensor]) -> list[str]:
    """open_clip's plain models of the size that these weights have: one name, or several that differ in nothing that tensors show."""
    try:
        found = _size(state)
    except (KeyError, IndexError):
        return []
    return [name for name in open_clip.list_models() if not name.endswith("-quickgelu") and _size_of_model(name) == found][:3]


def _size(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Width, patch, blocks and positions of the image tower, width, blocks and tokens of the text tower, and the embedding's width."""
    text = "text." if "text.token_embedding.weight" in state else ""

    def blocks(tower: str) -> int:
        return len({name for name in state if re.fullmatch(rf"{re.escape(tower)}transformer\.resblocks\.\d+\.attn\.in_proj_weight", name)})

    patches, tokens = state["visual.conv1.weight"].shape, state[f"{text}token_embedding.weight"].shape
    image = patches[0], patches[-1], blocks("visual."), len(state["visual.positional_embedding"])
    return (*image, tokens[1], blocks(text), tokens[0], state["visual.proj"].shape[1])


def _size_of_model(name: str) -> tuple[int, ...]:
    config = open_clip.get_model_config(name) or {}
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    if "timm_model_name" in vision or "hf_model_name" in text or not isinstance(vision.get("layers", 12), int):
        return ()
    image, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    side = image if isinstance(image, int) else image[0]
    sizes = vision.get("width", 768), patch, vision.get("layers", 12), (side // patch) ** 2 + 1
    return (*sizes, text.get("width", 512), text.get("layers", 12), text.get("vocab_size", 49408), config.get("embed_dim", 0))
