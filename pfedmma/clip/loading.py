"""Loading an open_clip model: by name and tag, from a local file, or with random weights."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from torch import nn

from pfedmma import rng
from pfedmma.clip import tiny, weights
from pfedmma.clip.backbone import PRECISIONS, Backbone, refuse_unsupported
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.options import SAME_RESULT, setting


@dataclass(frozen=True)
class BackboneConfig:
    """Which CLIP is adapted."""

    name: str = setting("tiny", "tiny (shipped), or an open_clip name such as ViT-B-16; for a file of OpenAI's weights the -quickgelu one")
    pretrained: str = setting(
        "auto",
        "an open_clip tag, a checkpoint file, none (random from the seed), or auto: tiny's shipped weights, otherwise OpenAI's",
    )
    allow_torchscript: bool = setting(
        False,
        "also read a checkpoint file that is a TorchScript archive, as OpenAI's are; such a file can hold code",
        SAME_RESULT,
    )
    precision: str = setting("fp32", "of the frozen matrix products: fp32, bf16 or fp16; adapters and optimizer state are always fp32")

    def __post_init__(self) -> None:
        checks.one_of("precision", self.precision, PRECISIONS)


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
