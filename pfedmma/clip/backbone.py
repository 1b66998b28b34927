"""Loading an open_clip model and freezing it into two towers."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from pfedmma import rng
from pfedmma.clip import tiny, weights
from pfedmma.clip.towers import Features, Stem, TextTower, VisualTower
from pfedmma.system import checks
from pfedmma.system.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BackboneConfig:
    """Which CLIP is adapted.

    ``name``: ``tiny`` (shipped) or an open_clip ViT name. ``pretrained``: an open_clip tag, a local checkpoint file, ``none``
    (random weights from the seed) or ``auto`` (the shipped weights of ``tiny``, OpenAI's of anything else). With a file of
    OpenAI's weights, name the ``-quickgelu`` model: a file does not say which activation it was trained with.
    ``allow_torchscript``: also take a file that is a TorchScript archive, which can hold code, as OpenAI's own are.
    ``precision``: of the frozen matrix products; adapters and optimizer state are always fp32.
    """

    name: str = "tiny"
    pretrained: str = "auto"
    allow_torchscript: bool = False
    precision: str = "fp32"

    def __post_init__(self) -> None:
        checks.one_of("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class Prompts:
    """Class prompts as token ids [K, context], and the names they were built from."""

    names: tuple[str, ...]
    tokens: Tensor


@dataclass(frozen=True)
class Preprocess:
    """How pixels are made for this backbone: side in pixels, then (x / 255 - mean) / std per channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"  # or "squash"


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP, ready to run block by block on one device."""

    name: str
    visual: VisualTower
    text: TextTower
    logit_scale: Tensor
    preprocess: Preprocess
    tokenizer: open_clip.SimpleTokenizer = field(repr=False)
    precision: str = "fp32"

    @classmethod
    def freeze(cls, model: Any, name: str = "open_clip model", precision: str = "fp32", tokenizer=None) -> Backbone:
        """Read the weights of an open_clip model (shared, not copied, in fp32) on the device where it lies.

        Raises:
            UserError: a tower is no plain transformer (ResNet, timm, HuggingFace, CoCa, custom blocks).
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
            visual=VisualTower(model.visual, dtype),
            text=TextTower(text, pool_type, eos_id, dtype),
            logit_scale=model.logit_scale.detach().float().exp(),
            preprocess=Preprocess(
                size=model.visual.image_size[0],
                mean=tuple(settings.get("mean", open_clip.OPENAI_DATASET_MEAN)),
                std=tuple(settings.get("std", open_clip.OPENAI_DATASET_STD)),
                interpolation=settings.get("interpolation", "bicubic"),
                resize_mode=settings.get("resize_mode", "shortest"),
            ),
            tokenizer=tokenizer or open_clip.SimpleTokenizer(context_length=model.context_length),
            precision=precision,
        )

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    def prompts(self, template: str, names: Sequence[str]) -> Prompts:
        """Prompts "a photo of a {class}." for each class, "_" read as a space."""
        texts = [template.format(name.replace("_", " ")) for name in names]
        return Prompts(tuple(names), self.tokenizer(texts).to(self.device))

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision around one forward pass; nothing in fp32.

        One pass, not more: autocast keeps low-precision copies of trained tensors until it is left.
        """
        with torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32"):
            yield

    @torch.no_grad()
    def image_stem(self, pixels: Tensor, blocks: int, pooled: bool = True) -> Stem:
        """[N,3,S,S] normalised pixels -> the stem of the lowest ``blocks`` blocks; ``pooled`` false keeps all tokens to the end."""
        x, pool = self.visual.embed(pixels)
        return self.visual.stem(x, pool if pooled else None, blocks)

    @torch.no_grad()
    def text_stem(self, prompts: Prompts, blocks: int) -> Stem:
        """K prompts -> the stem of the lowest ``blocks`` blocks, over the longest prompt's length only."""
        x, pool = self.text.embed(self.text.cut(prompts.tokens))
        return self.text.stem(x, pool, blocks)

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Features:
        """[N,3,S,S] normalised pixels -> features of the frozen tower [N,D], fp32, not normalised."""
        return Features(self.visual.features(self.image_stem(pixels, self.visual.depth).output).float())

    @torch.no_grad()
    def text_features(self, prompts: Prompts) -> Features:
        """K prompts -> features of the frozen tower [K,D], fp32, not normalised."""
        return Features(self.text.features(self.text_stem(prompts, self.text.depth).output).float())


def load(config: BackboneConfig, seed: int, device: torch.device) -> Backbone:
    """Create the frozen backbone that ``config`` names on ``device``.

    Raises:
        UserError: unknown name or tag, unreadable or unfitting weights, an unsupported tower.
    """
    model = create_model(config, seed).to(device)
    if device.type == "cuda" and config.precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # torch's default rounds the patch embedding to 10 bits
    refuse_unsupported(model, config.name)
    return Backbone.freeze(model, config.name, config.precision, own_tokenizer(config.name))


def own_tokenizer(name: str) -> Any:
    """The tokenizer that open_clip gives a model of this name, None for other models.

    Some plain ViTs were trained with one that open_clip fetches from a hub.
    """
    if name.replace("/", "-") not in open_clip.list_models():
        return None
    try:
        return open_clip.get_tokenizer(name)
    except Exception as error:  # ImportError, OSError and what the hub raises
        raise UserError(f"backbone.name: the tokenizer of {name} cannot be had here: {' '.join(str(error).split())[:200]}") from error


def create_model(config: BackboneConfig, seed: int) -> nn.Module:
    """The open_clip model itself, on the CPU in fp32, in evaluation mode."""
    name = config.name
    if name == "tiny":
        name = f"local-dir:{tiny.FOLDER}"
    elif name.replace("/", "-") not in open_clip.list_models():
        import difflib

        known = {model.lower(): model for model in open_clip.list_models()}
        near = [known[m] for m in difflib.get_close_matches(name.lower().replace("_", "-"), known, 3, 0.4)]
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise UserError(f"backbone.name: '{name}' is neither 'tiny' nor an open_clip model{hint}")
    options = {} if config.name == "tiny" else _weights(config)
    if config.name == "tiny" and config.pretrained == "none":
        options = {"load_weights": False}
    elif config.name == "tiny" and config.pretrained != "auto":
        options = {"load_weights": False, "file": _existing_file(config)}
    file = options.pop("file", None)
    with torch.random.fork_rng(devices=[]), _quiet_open_clip():
        torch.manual_seed(rng.key(seed, "backbone"))
        try:
            model = open_clip.create_model(name, **options)
            if file is not None:
                weights.load_into(model, str(file), config.allow_torchscript)
        except UserError:
            raise
        except Exception as error:  # open_clip, torch and the hub each raise their own kinds
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UserError(f"backbone.pretrained: cannot load '{config.pretrained}' into {config.name}: {reason}") from error
    return model.eval().requires_grad_(False)


def _existing_file(config: BackboneConfig) -> str:
    if not os.path.isfile(config.pretrained):
        raise UserError(f"backbone.pretrained: there is no file '{config.pretrained}'; give a checkpoint file, 'auto' or 'none'")
    return config.pretrained


def _weights(config: BackboneConfig) -> dict[str, object]:
    """open_clip's arguments for the wanted weights of a model that it knows by name."""
    tag = "openai" if config.pretrained == "auto" else config.pretrained
    if tag == "none":
        return {}
    name = config.name.replace("/", "-")
    known = open_clip.get_pretrained_cfg(name, tag)
    if known:
        # OpenAI's (and some other) weights were trained with QuickGELU; with plain GELU they run, but worse.
        return {"pretrained": tag, "force_quick_gelu": bool(known.get("quick_gelu", False))}
    if os.path.isfile(tag):
        return {"file": tag}
    tags = open_clip.list_pretrained_tags_by_model(name)
    raise UserError(
        f"backbone.pretrained: '{tag}' is neither a file nor a tag of {config.name}; "
        f"known tags: {', '.join(tags) or 'none'}; 'none' gives random weights"
    )


@contextlib.contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """open_clip warns about random weights on every creation; here they are asked for by name."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def refuse_unsupported(model: Any, name: str) -> None:
    """Raise a `UserError` unless both towers are plain CLIP transformers."""
    visual = getattr(model, "visual", None)
    text = model if hasattr(model, "transformer") else getattr(model, "text", None)
    kind = type(visual).__name__
    if not isinstance(visual, VisionTransformer):
        raise UserError(f"backbone.name: the image tower of {name} is a {kind}; adapters need a plain ViT such as ViT-B-16")
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg") or visual.proj is None:
        raise UserError(f"backbone.name: the image tower of {name} pools by attention; adapters need a plain ViT such as ViT-B-16")
    if not (isinstance(text, TextTransformer) or (text is model and hasattr(model, "token_embedding"))):
        raise UserError(f"backbone.name: the text tower of {name} is a {type(text).__name__}; adapters need CLIP's own transformer")
    if (getattr(text, "text_pool_type", None) or getattr(text, "pool_type", "argmax")) == "none":
        raise UserError(f"backbone.name: the text tower of {name} pools no token; adapters need CLIP's own transformer")
    if visual.image_size[0] != visual.image_size[1]:
        raise UserError(
            f"backbone.name: {name} sees images of {visual.image_size[0]} x {visual.image_size[1]} pixels; squares are supported"
        )
    if getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
        raise UserError(f"backbone.name: the text tower of {name} has a class token of its own; adapters need CLIP's own transformer")
    for tower, transformer in (("image", visual.transformer), ("text", text.transformer)):
        if any(type(block) is not ResidualAttentionBlock for block in transformer.resblocks):
            raise UserError(f"backbone.name: the {tower} tower of {name} has custom blocks; adapters need plain CLIP blocks")
