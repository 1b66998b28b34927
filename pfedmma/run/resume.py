"""Going on with a run from its newest good checkpoint."""

from __future__ import annotations

from pfedmma.config.identity import comparable, refuse_other_config
from pfedmma.config.schema import load as load_config
from pfedmma.records.checkpoint import manifest as checkpoint_manifest
from pfedmma.records.checkpoint import read
from pfedmma.records.folder import RunFolder
from pfedmma.run.assembly import Run


def restore(run: Run, folder: RunFolder) -> dict | None:
    """Load the newest good checkpoint into ``run``; its manifest, or None where there is none. All ranks enter.

    Raises:
        UserError: the checkpoint belongs to another configuration; names the keys that differ.
    """
    found = read.newest_good(folder.checkpoints, run.engine.world)
    if found is None:
        if folder.config.exists():  # it ended before its first checkpoint: begin again, but only the same run
            refuse_other_config(run.config, comparable(load_config(folder.config)))
        return None
    round_, manifest = found
    refuse_other_config(run.config, manifest["progress"]["config"])
    hosted = run.engine.hosted(range(len(run.engine.clients)))
    read.restore(checkpoint_manifest.folder_of(folder.checkpoints, round_), manifest, run.engine.store, [c.id for c in hosted])
    run.engine.world.ledger.restore(manifest["progress"]["ledger"])
    return manifest
