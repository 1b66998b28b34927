"""One client's tensors out of a run: without ranks, data or backbone."""

from __future__ import annotations

from dataclasses import dataclass

from pfedmma.config import schema
from pfedmma.config.schema import Config
from pfedmma.records.checkpoint.manifest import Classes
from pfedmma.records.checkpoint.read import Answer, client_answer, newest_good
from pfedmma.records.folder import RunFolder
from pfedmma.system.errors import UserError


@dataclass(frozen=True)
class KeptClient:
    """What a run's newest good checkpoint, of ``round``, has of a client. ``classes`` and ``backbone``: None in old ones."""

    config: Config
    round: int
    answer: Answer
    template: str
    classes: Classes | None
    backbone: dict[str, str] | None = None  # see `pfedmma.clip.fingerprint`

    @classmethod
    def from_run(cls, folder: RunFolder, client: int) -> KeptClient:
        """Raises a `UserError`: no run, no such client, no good checkpoint."""
        folder.require_run()
        config = schema.load_run(folder.path)
        if not 0 <= client < config.data.clients:
            raise UserError(f"--client: {folder.path} has clients 0 .. {config.data.clients - 1}, not {client}")
        manifest = newest_good(folder.checkpoints)
        if manifest is None:
            raise UserError(f"{folder.path} has no good checkpoint to take the client from; train with checkpoint.every greater than 0")
        answer = client_answer(folder.checkpoints, manifest, client)
        progress = manifest.progress
        return cls(config, manifest.round, answer, progress.template, progress.classes, progress.backbone)
