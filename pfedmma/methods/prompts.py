"""Prompts as a text tower sees them: no two classes may look the same to it, and what it cannot read to the end is named."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pfedmma.clip.backbone import Backbone
from pfedmma.system.errors import UserError


def require_told_apart(names: Sequence[str], tokens: Tensor) -> None:
    """A `UserError` where the prompts of two classes of different names are the same token ids [K,T].

    Classes of one and the same name are left to their data set: ImageNet's usual list has some, and says so when it is read.
    """
    seen: dict[tuple[int, ...], str] = {}
    for name, row in zip(names, tokens.tolist(), strict=True):
        other = seen.setdefault(tuple(row), name)
        if other != name:
            raise UserError(
                f"data.template: the classes '{other[:80]}' and '{name[:80]}' have the same prompt within the {tokens.shape[1]} tokens "
                f"that the text tower reads; give them names that differ, or a shorter template"
            )


def cut_prompts(backbone: Backbone, template: str, names: Sequence[str]) -> str:
    """A sentence about prompts that are longer than the text tower reads, so that their ends are lost; empty if there is none."""
    reach = len(backbone.text.positions)
    texts = {name: template.format(name.replace("_", " ")) for name in names}
    cut = [name for name, text in texts.items() if backbone.tokens_of(text) > reach]
    if not cut:
        return ""
    return (
        f"the prompts of {len(cut)} of {len(texts)} classes are longer than the {reach} tokens that {backbone.name} reads and are cut off, "
        f"first that of '{cut[0][:80]}'; shorten the class names or data.template"
    )
