"""One client's tensors out of a run: without ranks or data, and as a rule without a backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pfedmma.clip import loading
from pfedmma.clip.backbone import Backbone
from pfedmma.config import schema
from pfedmma.config.schema import Config
from pfedmma.methods import registry
from pfedmma.records.checkpoint.manifest import Classes
from pfedmma.records.checkpoint.read import Answer, chosen, client_answers
from pfedmma.records.folder import RunFolder
from pfedmma.run.start import own_shapes, start_of
from pfedmma.run.weights import refuse_other_weights
from pfedmma.stack.start import ALIKE
from pfedmma.stack.widths import Shapes, leading
from pfedmma.system.errors import UserError


@dataclass(frozen=True)
class KeptClient:
    """What a run's checkpoint of ``round`` has of a ``client``. ``classes`` and ``backbone``: None in old ones."""

    config: Config
    round: int
    client: int
    kept: Answer
    template: str
    classes: Classes | None
    backbone: dict[str, str] | None = None  # see `pfedmma.clip.fingerprint`

    @classmethod
    def from_run(cls, folder: RunFolder, client: int, round_: int | None = None) -> KeptClient:
        """Out of the newest good checkpoint, or that of ``round_``.

        Raises:
            UserError: no run, no such client, no good checkpoint.
        """
        return next(cls.each_from_run(folder, [client], round_))

    @classmethod
    def each_from_run(cls, folder: RunFolder, clients: Sequence[int] | None = None, round_: int | None = None) -> Iterator[KeptClient]:
        """As `from_run`, for several clients, by default all, in one pass over the checkpoint; one at a time is in memory."""
        folder.require_run()
        config = schema.load_run(folder.path)
        wanted = range(config.data.clients) if clients is None else clients
        for client in wanted:
            if not 0 <= client < config.data.clients:
                raise UserError(f"--client: {folder.path} has clients 0 .. {config.data.clients - 1}, not {client}")
        manifest = chosen(folder.checkpoints, round_)
        if manifest is None:
            raise UserError(f"{folder.path} has no good checkpoint to take the client from; train with checkpoint.every greater than 0")
        progress = manifest.progress
        for client, kept in client_answers(folder.checkpoints, manifest, wanted):
            yield cls(config, manifest.round, client, kept, progress.template, progress.classes, progress.backbone)

    def load_backbone(self, folder: RunFolder, device: torch.device) -> Backbone:
        """The run's frozen backbone. Raises a `UserError` if it cannot be had, or has other weights now."""
        backbone = loading.load(self.config.backbone, self.config.seed, device)
        refuse_other_weights(folder, self.backbone, backbone)
        return backbone

    def answer(self, backbone: Callable[[], Backbone]) -> Answer:
        """What the client answers with. ``backbone``: the run's, asked for only if the checkpoint does not say it all.

        That is so for a client that has not trained, if it begins with private tensors of its own: they follow from the seed.
        """
        found = self._found(backbone)
        if not self.config.method.dims:
            return found
        return found._replace(tensors=leading(found.tensors, self.own_shapes))

    @property
    def own_shapes(self) -> Shapes:
        """The shapes of its tensors, where clients are not all as wide; `answer` gives them as wide as the widest, with zeros."""
        return own_shapes(self.kept.tensors, self.config, self.client)

    def _found(self, backbone: Callable[[], Backbone]) -> Answer:
        if self.kept.trained or self.config.method.private_init == ALIKE:
            return self.kept
        method = registry.build(self.config.method, backbone())
        private, layout = start_of(method, self.config).private, method.layout
        own = {} if private is None else layout.part(layout.private, private(self.client))
        return self.kept._replace(tensors=self.kept.tensors | own)
