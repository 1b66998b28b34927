"""TorchScript archives, as OpenAI published its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

# Numbers in OpenAI's archives that are no weights.
OPENAI = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(49408)}


def scripted(state: dict[str, Tensor], path: Path) -> Path:
    """An archive of these tensors."""
    tree = nn.Module()
    for name, tensor in state.items():
        place = tree
        *parents, last = name.split(".")
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        place.register_buffer(last, tensor)
    torch.jit.script(tree).save(str(path))
    return path
