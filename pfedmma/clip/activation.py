"""GELU or quick GELU: the one thing that makes a model right and is no tensor, so that a file of weights may lack it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pfedmma.system import untrusted
from pfedmma.system.console import warn
from pfedmma.system.errors import speaks_for_all
from pfedmma.system.lazy import Library

open_clip, transformer = Library("open_clip"), Library("open_clip.transformer")

GELU, QUICK_GELU = "gelu", "quick_gelu"
SPOKEN = {GELU: "GELU", QUICK_GELU: "quick GELU"}
_OPEN_CLIP, _TRANSFORMERS = "open_clip_config.json", "config.json"  # as they lie beside weights of a hub


def of_module(module: Any) -> str:
    """The name of a block's activation: `GELU`, `QUICK_GELU`, or that of its class."""
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return GELU
    return QUICK_GELU if isinstance(module, transformer.QuickGELU) else type(module).__name__.lower()


def spoken(activation: str) -> str:
    return SPOKEN.get(activation, activation)


def beside(path: str, of_transformers: bool) -> str:
    """What the config beside a file of weights says, empty where there is none that belongs to it.

    Hubs keep ``open_clip_model.*`` beside ``open_clip_config.json`` and, in the layout of transformers, ``model.safetensors`` or
    ``pytorch_model.bin`` beside ``config.json``; without a word, the former has GELU and the latter quick GELU.
    """
    file = Path(path)
    names = ("model.", "pytorch_model.") if of_transformers else ("open_clip_",)
    if not file.name.startswith(names):
        return ""
    try:
        config = untrusted.read_json(file.with_name(_TRANSFORMERS if of_transformers else _OPEN_CLIP))
        return _of_transformers(config) if of_transformers else _of_open_clip(config)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return ""


def _of_open_clip(config: Any) -> str:
    quick = config["model_cfg"].get("quick_gelu", False)
    return {True: QUICK_GELU, False: GELU}[quick] if isinstance(quick, bool) else ""


def _of_transformers(config: Any) -> str:
    said = {config[f"{tower}_config"].get("hidden_act", QUICK_GELU) for tower in ("vision", "text")}
    return said.pop() if len(said) == 1 and said <= {GELU, QUICK_GELU} else ""


def warn_where_unknown(path: str, said: str, name: str, has: str) -> None:
    """A line on rank 0 where weights may not have been trained with what the model ``name`` ``has``: it cannot be known, or differs."""
    if not speaks_for_all():
        return
    quick = f"{name.replace('/', '-')}-quickgelu"
    if said and said != has:
        line = f"'{path}' says that its weights were trained with {spoken(said)}, and {name} has {spoken(has)}"
    elif not said and has == GELU and quick in open_clip.list_models():
        line = (
            f"'{path}' does not say whether it was trained with GELU or quick GELU, and {name} has GELU; "
            f"for weights of OpenAI, and others that need quick GELU, set backbone.name={quick}"
        )
    else:
        return
    warn(f"backbone.pretrained: {line}")
