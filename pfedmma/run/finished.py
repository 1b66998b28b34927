"""Whether a run has been done."""

from __future__ import annotations

from pfedmma.config.identity import relevant, settings
from pfedmma.config.schema import Config
from pfedmma.records.folder import RunFolder
from pfedmma.records.rows import RunSummary


def finished(config: Config) -> RunSummary | None:
    """The summary of the run in ``run_dir``, if it has been done with just these settings; those that no result depends on may differ.

    Raises:
        UserError: there is a summary that cannot be read.
    """
    folder = RunFolder(config.run_dir)
    if not folder.holds_a_run or not folder.summary.exists():
        return None
    summary = folder.read_summary()
    return summary if summary.config and relevant(summary.config) == relevant(settings(config)) else None
