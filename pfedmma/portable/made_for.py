"""What a client's file was made for: the frozen model below its tensors, the class prompts, and the classes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pfedmma.clip import activation
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.fingerprint import FrozenWeights
from pfedmma.system import untrusted
from pfedmma.system.errors import UserError


@dataclass(frozen=True)
class MadeFor:
    """The name of the ``backbone``, its ``weights``, the ``template`` of class prompts and the run's ``classes``; empty where not known."""

    backbone: str = ""
    weights: FrozenWeights = field(default_factory=FrozenWeights)
    template: str = ""
    classes: tuple[str, ...] = ()

    def to_metadata(self) -> dict[str, str]:
        """Entries of a safetensors file's metadata; all but ``backbone`` may be missing there."""
        said = {f"backbone.{name}": value for name, value in self.weights.to_json().items()} | {"template": self.template}
        classes = {"classes": json.dumps(self.classes)} if self.classes else {}
        return {"backbone": self.backbone} | {name: value for name, value in said.items() if value} | classes

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> MadeFor:
        """The inverse of `to_metadata`. What a file of an earlier version lacks is not known; classes that are no names are not, either."""
        weights = FrozenWeights.from_json({name: metadata.get(f"backbone.{name}", "") for name in FrozenWeights().to_json()})
        return cls(metadata.get("backbone", ""), weights, metadata.get("template", ""), _classes(metadata.get("classes", "[]")))

    def on(self, backbone: Backbone) -> MadeFor:
        """The same for what has been trained on this backbone, which may have other weights or be the first that is known."""
        known = self.weights.fingerprint and self.weights.activation
        if known and self.weights.has_numbers_of(backbone) and self.weights.has_activation_of(backbone):
            return self
        pretrained = self.weights.pretrained if self.weights.has_numbers_of(backbone) else ""
        return dataclasses.replace(self, weights=FrozenWeights.from_backbone(backbone, pretrained))

    def refuse_other(self, path: str | Path, backbone: Backbone) -> None:
        """Raise a `UserError` unless the frozen ``backbone`` is the one that the file at ``path`` was made for, as far as that is known."""
        name = self.backbone or "a model"
        if not self.weights.has_activation_of(backbone):
            raise UserError(
                f"{path} is made for {name} with {activation.spoken(self.weights.activation)}, and this model has another activation; "
                f"create it with force_quick_gelu={self.weights.activation == activation.QUICK_GELU}, or pass insist=True"
            )
        if not self.weights.has_numbers_of(backbone):
            tag = f" (backbone.pretrained={self.weights.pretrained})" if self.weights.pretrained else ""
            raise UserError(
                f"{path} is made for {name} with other frozen weights{tag} than this model has; load those weights, or pass insist=True"
            )


def _classes(text: str) -> tuple[str, ...]:
    try:
        names = untrusted.parse_json(text)
    except ValueError:
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
