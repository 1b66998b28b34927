"""Going on with a run from its newest good checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pfedmma.accuracy.selection import Best
from pfedmma.comm.world import World
from pfedmma.config.identity import comparable, refuse_other_config
from pfedmma.config.schema import load_run
from pfedmma.data.fingerprint import first_difference
from pfedmma.engine.cohort import Members
from pfedmma.records.checkpoint.manifest import EARLIER, Damaged, Manifest, Progress, folder_of, rounds
from pfedmma.records.checkpoint.read import TEXTS, checked, misfit, read_rows, say_damaged
from pfedmma.records.folder import RunFolder
from pfedmma.records.selected import LAST
from pfedmma.run.assembly import Run, new_members
from pfedmma.run.server import refuse_other_noise
from pfedmma.run.weights import refuse_other_weights
from pfedmma.stack.rules import OWN, PERSONAL, SERVERS
from pfedmma.system.console import warn
from pfedmma.system.errors import UserError


def restore(run: Run, folder: RunFolder, round_: int | None = None) -> Manifest | None:
    """Load the newest good checkpoint, or that of ``round_``, into ``run``; its manifest, or None where there is none. All ranks enter.

    Raises:
        UserError: the checkpoint belongs to another configuration (names the keys that differ), or a later version wrote it.
    """
    manifest = newest_good(folder.checkpoints, run.engine.world, round_)
    if manifest is None:
        if folder.config.exists():  # it ended before its first checkpoint: begin again, but only the same run
            refuse_other_config(run.config, comparable(load_run(folder.path)))
        return None
    saved = manifest.progress.config
    if manifest.format == EARLIER:  # which took another wire for the same run, and did not keep it
        saved = saved | {"distributed.wire": run.config.distributed.wire}
    refuse_other_config(run.config, saved)
    if run.engine.world.is_main:
        _warn_of_another_version(run, manifest)
    _refuse_other_data(run, manifest)
    refuse_other_weights(folder, manifest.progress.backbone, run.backbone)
    _answer_as_before(run, manifest.progress.answers)
    mine = {client.id for client in run.engine.clients if run.engine.assignment.keeps(client.id)}
    # Clients that were fine-tuned after an earlier last round go on as if they had not been.
    goes_on = run.engine.fine_tuning is not None and manifest.round < run.config.federation.rounds
    texts = fill(run.engine.members, folder.checkpoints, manifest, mine, leave_out=(PERSONAL,) if goes_on else ())
    refuse_other_noise(run.engine, run.config.run_dir)
    run.engine.world.wait("resume")  # what another rank has read is there for this one
    run.engine.evaluation.best = _best_so_far(run, manifest.progress)
    run.engine.evaluation.texts.kept = {name: texts[name] for name in run.federated.sets() if name in texts}
    run.engine.world.ledger.restore(manifest.progress.ledger)
    return manifest


def _warn_of_another_version(run: Run, manifest: Manifest) -> None:
    made, data = manifest.progress.torch_version, run.config.data
    if made not in (None, torch.__version__):
        warn(f"{run.config.run_dir} was made with torch {made}, this is {torch.__version__}: last digits may differ")
    if manifest.format == EARLIER and data.protocol == "dirichlet" and not data.partition_file:
        warn(
            f"{run.config.run_dir} is of version 0.1.0, which rounded Dirichlet shares otherwise: its clients hold a few other images now; "
            "data.partition_file with what describe --out of 0.1.0 writes keeps them"
        )


def _answer_as_before(run: Run, answers: str) -> None:
    """A run of an earlier version, in which this method's clients answered with the server's tensors, goes on so: the rest was not kept."""
    engine = run.engine
    method = engine.training.method
    if (answers, method.answers) != (SERVERS, OWN):
        return
    engine.members = new_members(method, run.config, engine.world, answers, engine.server.rules)
    engine.members.states.share(engine.assignment)
    if engine.world.is_main:
        name, folder = run.config.method.name, run.config.run_dir
        warn(
            f"{folder} is of an earlier version, in which clients of {name} are tested with the server's tensors, not with their own last "
            f"ones as today; it goes on so: do not compare it with new runs of {name}"
        )


def _best_so_far(run: Run, progress: Progress) -> Best | None:
    """The best of the rounds so far. Raises a `UserError` where they were not compared in the way that is asked for now."""
    asked = run.config.evaluation.select
    if asked == LAST:
        return None
    if asked != progress.select:
        raise UserError(
            f"evaluation.select: the rounds of {run.config.run_dir} so far were made with {progress.select}, and not compared as {asked} "
            f"asks; go on with {progress.select} or last, or start a new run"
        )
    if progress.selected is None or progress.selected_table is None:
        return None
    return Best(progress.selected, progress.selected_table)


def _refuse_other_data(run: Run, manifest: Manifest) -> None:
    then, now = manifest.progress.data, run.fingerprint
    try:
        difference = first_difference(then, now) if then and now else ""
    except (LookupError, TypeError, ValueError):
        difference = "what the checkpoint says of them cannot be compared"
    if difference:
        raise UserError(
            f"data: the run in {run.config.run_dir} was made with other data: {difference}; set data.root to those, or start a new run"
        )


def newest_good(root: Path, world: World, only: int | None = None) -> Manifest | None:
    """The manifest of the newest checkpoint that is whole, None where there is none. All ranks enter and agree.

    ``only``: the one round that is looked for.

    Rank 0's view of the folder decides; each rank checks a part of the files. Warns about each damaged one.

    Raises:
        LaterFormat: a checkpoint that is newer than any good one is of a format that this version does not read.
    """
    candidates = [*(kept for kept in rounds(root) if only in (None, kept)), -1] if world.is_main else []
    while True:
        round_ = int(world.sum(torch.tensor([candidates.pop(0) if world.is_main else 0], dtype=torch.float64), "resume"))
        if round_ < 0:
            return None
        manifest = None
        try:
            manifest = checked(root, round_, world.rank, world.size)
        except Damaged as error:
            say_damaged(round_, error)
        if float(world.sum(torch.tensor([float(manifest is None)]), "resume")) == 0.0:
            return manifest


def fill(members: Members, root: Path, manifest: Manifest, clients: Collection[int], leave_out: Collection[str] = ()) -> dict[str, Tensor]:
    """Put what the server has, and the own state of ``clients``, into ``members``; but no tensors of clients of the kinds ``leave_out``.

    Returns:
        By test set, the text features [n] that all clients are tested with, where there are such.

    Raises:
        UserError: a file cannot be read, or holds what does not fit ``members``.
    """
    states, folder = members.states, folder_of(root, manifest.round)
    if manifest.layout != states.layout or manifest.progress.answers != states.answers:
        raise UserError(f"the checkpoint {folder} is of other tensors than this run's; go on with the settings and the backbone of its run")
    widths = states.widths() | {"initial": states.layout.size}
    named: dict[str, Tensor] = {}
    partial: dict[int, dict[str, Tensor]] = {}  # optimizer states of which more is to come
    initial = False
    for client, kind, tensor in read_rows(root, manifest, clients):
        if client is not None and kind.startswith("optimizer.") and states.optimizer.state == "reset":
            continue  # of a run that keeps it, for who needs the model alone
        if client is not None and kind in leave_out:
            continue
        if client is None and kind != "initial":
            named[kind] = tensor
            continue
        if len(tensor) != widths.get(kind):
            raise misfit(folder, kind if client is None else f"{client}.{kind}")
        if client is None:
            states.initial.copy_(tensor)
            initial = True
        elif kind == "private":
            states.own[client] = tensor
        elif kind in states.beside:
            states.beside[kind][client] = tensor
        else:
            parts = partial.setdefault(client, {})
            parts[kind.removeprefix("optimizer.")] = tensor
            if {f"optimizer.{name}" for name in parts} == {name for name in states.widths() if name.startswith("optimizer.")}:
                states.keep_optimizer_state(client, partial.pop(client))
    if partial or not initial:
        raise UserError(f"the checkpoint {folder} lacks a part of the state of {'an optimizer' if partial else 'the server'}")
    try:
        members.server.load_state_dict(_of_kind("server.", named))
    except ValueError as error:
        raise UserError(f"the checkpoint {folder} does not fit this run: {error}") from None
    return _of_kind(TEXTS, named)


def _of_kind(prefix: str, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)}
