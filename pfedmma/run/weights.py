"""A run goes on, and answers, with the frozen weights that it was made with."""

from __future__ import annotations

from collections.abc import Mapping

from pfedmma.clip.activation import spoken
from pfedmma.clip.backbone import Backbone
from pfedmma.clip.fingerprint import FrozenWeights
from pfedmma.records.folder import RunFolder
from pfedmma.system.errors import UserError


def refuse_other_weights(folder: RunFolder, kept: Mapping[str, str] | None, backbone: Backbone) -> None:
    """Raise a `UserError` unless the frozen ``backbone`` is the run's, as far as its checkpoint's ``kept`` says what that was."""
    then = FrozenWeights.from_json(kept)
    if not then.has_activation_of(backbone):
        raise UserError(
            f"backbone: the run in {folder.path} was made with {spoken(then.activation)}, which this backbone does not have; set "
            "backbone.name and backbone.pretrained to that run's, or start a new run"
        )
    if not then.has_numbers_of(backbone):
        named = f" ({then.pretrained})" if then.pretrained else ""
        raise UserError(
            f"backbone.pretrained: the run in {folder.path} was made with other frozen weights{named}; set it to those, or start a new run"
        )
