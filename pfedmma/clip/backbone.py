"""An open_clip model frozen into two towers: prompts, stems and features."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pfedmma.clip.preprocess import Preprocess
from pfedmma.clip.prompt_stem import PromptStem
from pfedmma.clip.stems import Features, TowerStem
from pfedmma.clip.timm_tower import TimmTower, refusal
from pfedmma.clip.towers import Places, TextTower, VisualTower
from pfedmma.system.errors import UserError
from pfedmma.system.lazy import Library

if TYPE_CHECKING:
    import open_clip
else:
    open_clip = Library("open_clip")
parts = Library("open_clip.transformer")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Prompts:
    """Class prompts as token ids [K, context], and the names they were built from."""

    names: tuple[str, ...]
    tokens: Tensor


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP, ready to run block by block on one device.

    ``logit_bias``: added to every logit by models that were trained with a sigmoid (SigLIP), None for others. A softmax does not see it.
    """

    name: str
    visual: VisualTower
    text: TextTower
    logit_scale: Tensor
    preprocess: Preprocess
    tokenizer: open_clip.SimpleTokenizer = field(repr=False)
    precision: str = "fp32"
    logit_bias: Tensor | None = None

    @classmethod
    def freeze(
        cls, model: Any, name: str = "open_clip model", precision: str = "fp32", tokenizer=None, text_gb: float = float("inf")
    ) -> Backbone:
        """Read the weights of an open_clip model (shared, not copied, in fp32) on the device where it lies.

        ``text_gb``: GB that a pass over class prompts keeps for its gradients at most; what would be more is computed again.

        Raises:
            UserError: a tower is no plain transformer (ResNet, HuggingFace, CoCa, most of timm's, custom blocks).
        """
        refuse_unsupported(model, name)
        settings = getattr(model.visual, "preprocess_cfg", {})
        if settings.get("resize_mode", "shortest") not in ("shortest", "squash"):
            raise UserError(
                f"backbone.name: {name} wants images resized by '{settings['resize_mode']}'; 'shortest' and 'squash' are supported"
            )
        text = model if hasattr(model, "transformer") else model.text
        pool_type = getattr(text, "text_pool_type", None) or text.pool_type
        eos_id: int = getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None) or 2
        dtype = PRECISIONS[precision]
        return cls(
            name=name,
            visual=(TimmTower if hasattr(model.visual, "trunk") else VisualTower)(model.visual, dtype),
            text=TextTower(text, pool_type, eos_id, dtype, text_gb * 1e9),
            logit_scale=model.logit_scale.detach().float().exp(),
            preprocess=Preprocess(
                size=model.visual.image_size[0],
                mean=tuple(settings.get("mean", open_clip.OPENAI_DATASET_MEAN)),
                std=tuple(settings.get("std", open_clip.OPENAI_DATASET_STD)),
                interpolation=settings.get("interpolation", "bicubic"),
                resize_mode=settings.get("resize_mode", "shortest"),
            ),
            tokenizer=tokenizer or simple_tokenizer(model.context_length),
            precision=precision,
            logit_bias=None if getattr(model, "logit_bias", None) is None else model.logit_bias.detach().float(),
        )

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen matrix products."""
        return PRECISIONS[self.precision]

    def prompts(self, template: str, names: Sequence[str]) -> Prompts:
        """Prompts "a photo of a {class}." for each class, "_" read as a space."""
        texts = [template.format(name.replace("_", " ")) for name in names]
        return Prompts(tuple(names), self.tokenizer(texts).to(self.device))

    def tokens_of(self, text: str) -> int:
        """How many tokens ``text`` is before anything is cut off, with those at its start and end."""
        if self.has_clips_tokenizer:
            return len(self.tokenizer.encode(text)) + 2
        return len(self.tokenizer.tokenizer(self.tokenizer.clean_fn(text)).input_ids)  # open_clip's HFTokenizer

    @property
    def has_clips_tokenizer(self) -> bool:
        """Whether prompts are ``[SOS] words [EOS]``, as CLIP's; SigLIP's have no start, and padding before the pooled token."""
        return hasattr(self.tokenizer, "encode")

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision around one forward pass; nothing in fp32.

        One pass, not more: autocast keeps low-precision copies of trained tensors until it is left.
        """
        with torch.autocast(self.device.type, self.dtype, enabled=self.precision != "fp32"):
            yield

    @torch.no_grad()
    def image_stem(self, pixels: Tensor, blocks: int, pooled: bool = True) -> TowerStem:
        """[N,3,S,S] normalised pixels -> the stem of the lowest ``blocks`` blocks; ``pooled`` false keeps all tokens to the end."""
        x, pool = self.visual.embed(pixels)
        return self.visual.stem(x, pool if pooled else None, blocks)

    @torch.no_grad()
    def text_stem(self, prompts: Prompts, blocks: int) -> PromptStem:
        """K prompts -> the stem of the lowest ``blocks`` blocks, no longer than they need, in parts of like length where that pays."""
        rows, tokens = zip(*self.text.parts(prompts.tokens), strict=True)
        return PromptStem.from_parts([self.text.stem(*self.text.embed(part), blocks) for part in tokens], rows)

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Features:
        """[N,3,S,S] normalised pixels -> features of the frozen tower [N,D], fp32, not normalised."""
        return self.finished(self.image_stem(pixels, self.visual.depth))

    @torch.no_grad()
    def finished(self, stem: TowerStem) -> Features:
        """The stem of N images -> what the frozen tower makes of them."""
        return Features(self.visual.features(self.visual.finish(stem, Places())).float())

    @torch.no_grad()
    def text_features(self, prompts: Prompts) -> Features:
        """K prompts -> features of the frozen tower [K,D], fp32, not normalised."""
        return Features(self.text.features(self.text.finish(self.text_stem(prompts, self.text.depth), Places())).float())


@functools.cache
def simple_tokenizer(context: int) -> open_clip.SimpleTokenizer:
    """open_clip's own, for prompts of ``context`` tokens; its vocabulary is read once a process."""
    return open_clip.SimpleTokenizer(context_length=context)


def refuse_unsupported(model: Any, name: str) -> None:
    """Raise a `UserError` unless both towers are plain transformers."""
    visual = getattr(model, "visual", None)
    text = model if hasattr(model, "transformer") else getattr(model, "text", None)
    if reason := _refusal_of_image_tower(visual):
        raise UserError(f"backbone.name: the image tower of {name} {reason}; adapters need a plain ViT such as ViT-B-16")
    if reason := _refusal_of_text_tower(text, text is model):
        raise UserError(f"backbone.name: the text tower of {name} {reason}; adapters need CLIP's own transformer")
    if visual.image_size[0] != visual.image_size[1]:  # type: ignore[union-attr]
        high, wide = visual.image_size  # type: ignore[union-attr]
        raise UserError(f"backbone.name: {name} sees images of {high} x {wide} pixels; squares are supported")
    towers = [("text", text)] if hasattr(visual, "trunk") else [("image", visual), ("text", text)]
    for tower, module in towers:
        if any(type(block) is not parts.ResidualAttentionBlock for block in module.transformer.resblocks):  # type: ignore[union-attr]
            raise UserError(f"backbone.name: the {tower} tower of {name} has custom blocks; adapters need plain CLIP blocks")


def _refusal_of_image_tower(visual: Any) -> str:
    if hasattr(visual, "trunk"):  # open_clip's TimmModel
        return refusal(visual)
    if not isinstance(visual, parts.VisionTransformer):
        return f"is a {type(visual).__name__}"
    plain = visual.attn_pool is None and visual.pool_type in ("tok", "avg") and visual.proj is not None
    return "" if plain else "pools by attention"


def _refusal_of_text_tower(text: Any, inside: bool) -> str:
    """``inside``: the model itself holds its parts."""
    if not (isinstance(text, parts.TextTransformer) or (inside and hasattr(text, "token_embedding"))):
        return f"is a {type(text).__name__}"
    if (getattr(text, "text_pool_type", None) or getattr(text, "pool_type", "argmax")) == "none":
        return "pools no token"
    own = getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False)
    return "has a class token of its own" if own else ""
