"""Loading an open_clip model: by name and tag, from a local file, or with random weights."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pfedmma import rng
from pfedmma.clip import attention, exactness, fitting, tiny, weights
from pfedmma.clip.activation import GELU, QUICK_GELU, warn_where_unknown
from pfedmma.clip.backbone import PRECISIONS, Backbone, refuse_unsupported
from pfedmma.clip.file_kinds import NoWeights
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.files import expanded
from pfedmma.system.lazy import Library
from pfedmma.system.options import GOES_ON, SAME_RESULT, setting

open_clip = Library("open_clip")

CHOICES = AUTO, ON, OFF = "auto", "on", "off"  # of ``backbone.compile``


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
    compile: str = setting(
        AUTO,
        "training through torch.compile, the same up to rounding: auto (on a GPU, where a run is long), on or off; it takes minutes",
        GOES_ON,
    )
    attention: str = setting(
        "auto",
        "attention kernels on a GPU: auto (flash, else memory-efficient), flash, efficient, cudnn (first on an H100) or math",
        SAME_RESULT,
    )
    text_gb: float = setting(
        16.0,
        "memory in GB that a training step keeps of the text tower for its gradients; what class prompts need beyond it is computed again",
        SAME_RESULT,
    )
    tf32: bool = setting(
        False, "on a GPU in fp32: products round their inputs to 10 bits, adapters and logits as well, for several times the speed"
    )
    deterministic: bool = setting(
        False,
        "on a GPU: only kernels that give the same bits every time, so that a run can be repeated and resumed bit by bit; slower",
        SAME_RESULT,
    )

    def __post_init__(self) -> None:
        checks.one_of("compile", self.compile, CHOICES)
        checks.one_of("precision", self.precision, PRECISIONS)
        checks.one_of("attention", self.attention, attention.CHOICES)
        if self.attention == "flash" and self.precision == "fp32":
            raise UserError("attention: flash takes no fp32; set backbone.precision to bf16 or fp16, or backbone.attention=efficient")
        checks.at_least("text_gb", self.text_gb, 0.1)
        if self.tf32 and self.precision != "fp32":
            raise UserError(f"tf32: it is about products in fp32, and backbone.precision is {self.precision}; leave one of the two out")
        if self.deterministic and self.compile == "on":
            raise UserError("deterministic: compiled kernels are chosen by a clock; leave out backbone.compile=on")

    @property
    def compiles(self) -> str:
        """``compile``, which is off by itself where every bit counts."""
        return "off" if self.deterministic else self.compile


def load(config: BackboneConfig, seed: int, device: torch.device) -> Backbone:
    """Create the frozen backbone that ``config`` names on ``device``.

    Raises:
        UserError: unknown name or tag, unreadable or unfitting weights, an unsupported tower.
    """
    return frozen(config, create_model(config, seed).to(device), device)


def frozen(config: BackboneConfig, model: nn.Module, device: torch.device) -> Backbone:
    """The backbone that ``config`` asks for out of a ``model`` that `create_model` has made, on the ``device`` where it lies."""
    if device.type == "cuda":
        attention.use(config.attention)
    exactness.choose(device, config.tf32, config.deterministic)
    refuse_unsupported(model, config.name)
    return Backbone.freeze(model, config.name, config.precision, own_tokenizer(config.name), config.text_gb)


def own_tokenizer(name: str) -> Any:
    """The tokenizer that open_clip gives a model of this name, None for other models.

    SigLIP and some plain ViTs were trained with one that open_clip fetches from a hub.
    """
    if name.replace("/", "-") not in open_clip.list_models():
        return None
    try:
        return open_clip.get_tokenizer(name)
    except Exception as error:  # ImportError, OSError and what the hub raises
        raise UserError(
            f"backbone.name: the tokenizer of {name} cannot be had here: {' '.join(str(error).split())[:200]}; "
            f"it needs the package transformers (the extra 'siglip'), and its files out of the Hugging Face hub in this machine's cache"
        ) from error


def create_model(config: BackboneConfig, seed: int) -> nn.Module:
    """The open_clip model itself, on the CPU in fp32, in evaluation mode.

    Weights from a file bring their activation, where the file says it; a line on stderr says so where it does not and two are possible.

    Raises:
        UserError: see `load`.
    """
    config = dataclasses.replace(config, pretrained=str(expanded(config.pretrained)))
    name = _own_name(config.name)
    options = _tiny_weights(config) if config.name == "tiny" else _weights(config)
    file = options.pop("file", None)
    with torch.random.fork_rng(devices=[]), _quiet_open_clip():
        torch.manual_seed(rng.key(seed, "backbone"))
        try:
            found = None if file is None else weights.read(str(file), config.allow_torchscript)
            if found is not None and found.activation == QUICK_GELU:
                options["force_quick_gelu"] = True
            model = open_clip.create_model(name, **options)
            if found is not None:
                fitting.put(model, found.tensors, config.name)
        except UserError:
            raise
        except Exception as error:  # open_clip, torch and the hub each raise their own kinds
            reason = str(error) if isinstance(error, NoWeights) else f"{type(error).__name__}: {_one_line(error)}"
            raise UserError(f"backbone.pretrained: cannot load '{config.pretrained}' into {config.name}: {reason}") from error
    if found is not None and found.activation != QUICK_GELU:
        quick = config.name.endswith("-quickgelu")
        warn_where_unknown(config.pretrained, found.activation, config.name, QUICK_GELU if quick else GELU)
    return model.eval().requires_grad_(False)


def create_shapes(name: str) -> nn.Module:
    """The open_clip model of this name on the meta device: its shapes without numbers, whatever its weights.

    Raises:
        UserError: unknown name.
    """
    own = _own_name(name)
    with _quiet_open_clip(), torch.device("meta"):
        model = open_clip.create_model(own, device="meta", **({"load_weights": False} if name == "tiny" else {}))
    return model.eval().requires_grad_(False)


def _own_name(name: str) -> str:
    """What open_clip calls the model. Raises a `UserError` if it has none of that name."""
    if name == "tiny":
        return f"local-dir:{tiny.FOLDER}"
    if name.replace("/", "-") not in open_clip.list_models():
        raise UserError(f"backbone.name: '{name}' is neither 'tiny' nor an open_clip model{_near_names(name)}")
    return name


def _near_names(name: str) -> str:
    import difflib

    known = {model.lower(): model for model in open_clip.list_models()}
    near = [known[m] for m in difflib.get_close_matches(name.lower().replace("_", "-"), known, 3, 0.4)]
    return f"; near names: {', '.join(near)}" if near else ""


def _one_line(error: Exception) -> str:
    """What an error of a library says, without escape codes of a terminal."""
    return " ".join(re.sub(r"[^\x20-\x7e]", " ", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))).split())[:300]


def _tiny_weights(config: BackboneConfig) -> dict[str, Any]:
    """open_clip's arguments for the wanted weights of tiny, with ``file`` for a file of our own reading."""
    tag = config.pretrained
    if tag == "auto":
        return {}
    if tag == "none":
        return {"load_weights": False}
    _refuse_folder(tag)
    if os.path.isfile(tag):
        return {"load_weights": False, "file": tag}
    if any(tag == known for _, known in open_clip.list_pretrained()):
        raise UserError(
            f"backbone.pretrained: '{tag}' names weights of open_clip's own models, not of tiny; set backbone.pretrained=auto for "
            f"tiny's, which are shipped, or another backbone.name"
        )
    raise UserError(f"backbone.pretrained: there is no file '{tag}'; give a checkpoint file, 'auto' or 'none'")


def _refuse_folder(path: str) -> None:
    if os.path.isdir(path):
        raise UserError(f"backbone.pretrained: '{path}' is a folder; give the file of weights in it")


def _weights(config: BackboneConfig) -> dict[str, Any]:
    """open_clip's arguments for the wanted weights of a model that it knows by name, with ``file`` for a file of our own reading."""
    tag = "openai" if config.pretrained == "auto" else config.pretrained
    if tag == "none":
        return {}
    name = config.name.replace("/", "-")
    known = open_clip.get_pretrained_cfg(name, tag)
    if known:
        # OpenAI's (and some other) weights were trained with QuickGELU; with plain GELU they run, but worse.
        return {"pretrained": tag, "force_quick_gelu": bool(known.get("quick_gelu", False))}
    _refuse_folder(tag)
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
