"""Train, test and keep a federation, the main job: ``python -m pfedmma.train [--config FILE] [key=value ...]``

The same under torchrun and accelerate launch.

exit status: 0, also where a signal ends a run after its round, which resume=auto goes on with, or where the run is finished already; 2 if
it cannot start or go on; 130 if it is interrupted before the rounds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence

import torch

from pfedmma.accuracy.zero_shot import Reference
from pfedmma.comm.world import World, open_world
from pfedmma.config import schema as configuration
from pfedmma.config.arguments import parser_with_settings
from pfedmma.config.identity import settings
from pfedmma.config.schema import Config
from pfedmma.config.table import explained
from pfedmma.engine.new_clients import Interrupted
from pfedmma.records import lock
from pfedmma.records.checkpoint.manifest import Manifest
from pfedmma.records.checkpoint.manifest import rounds as kept_rounds
from pfedmma.records.folder import RunFolder
from pfedmma.records.origin import Origin
from pfedmma.records.rows import NewClients, RunSummary
from pfedmma.records.trackers import Trackers
from pfedmma.records.trackers import require as require_trackers
from pfedmma.run import display
from pfedmma.run.assembly import Run, assemble
from pfedmma.run.display import accuracy_table, diagnostics_table, new_clients_table, privacy_line
from pfedmma.run.finished import finished
from pfedmma.run.recorder import Recorder
from pfedmma.run.resume import restore
from pfedmma.run.summary import build_summary
from pfedmma.system.console import ProgressBar, megabytes, show
from pfedmma.system.errors import UserError, run_main
from pfedmma.system.memory import shortage_named
from pfedmma.system.signals import Interruption


def main(argv: list[str] | None = None) -> None:
    """Parse, build, run."""
    given = sys.argv[1:] if argv is None else argv
    carry_out(parse(given), given)


def carry_out(config: Config, given: Sequence[str] = ()) -> None:
    """Train, test and keep what the settings ask for; ``given``: how they stood on the command line. All ranks enter."""
    folder = RunFolder(config.run_dir)
    if not config.resume:
        folder.refuse_overwriting()
    folder.require_writable()
    require_trackers(config.trackers)
    with Interruption() as interruption, shortage_named():
        world = open_world(config.distributed)
        origin = Origin.now("pfedmma.train", given) if world.is_main else None
        if not (config.resume and shown_before(config, folder, world)):
            with owned_by_rank_0(folder, config, world):
                run = assemble(config, world, interruption)
                manifest = restore(run, folder) if config.resume else None
                world.wait("start")
                train(run, folder, manifest, origin)
        world.close()


def shown_before(config: Config, folder: RunFolder, world: World) -> bool:
    """Whether the run has been done with just these settings: rank 0, whose view decides, then shows its result. All ranks enter.

    Not so where its last checkpoint has been taken away and an earlier one left, nor where trackers may not know all rounds.
    """
    summary = None
    if world.is_main and not config.trackers:
        with contextlib.suppress(UserError):  # a summary that cannot be read is written anew
            summary = finished(config)
    if summary is not None and config.checkpoint.every and kept_rounds(folder.checkpoints)[:1] not in ([], [summary.rounds]):
        summary = None
    if float(world.sum(torch.tensor([float(summary is not None)]), "start")) == 0:
        return False
    if summary is not None:
        print(f"finished: all {summary.rounds} rounds of {folder.path} are done; federation.rounds=N goes on to round N")
        show_result(summary, folder)
    return True


@contextlib.contextmanager
def owned_by_rank_0(folder: RunFolder, config: Config, world: World) -> Iterator[None]:
    """Rank 0 holds the run folder, or all ranks end. All ranks enter."""
    problem: UserError | None = None
    with contextlib.ExitStack() as held:
        if world.is_main:
            try:
                held.enter_context(lock.owned(folder.path))
                if not config.resume:  # somebody may have been faster
                    folder.refuse_overwriting()
            except UserError as error:
                problem = error
        refused = float(world.sum(torch.tensor([float(problem is not None)]), "start")) > 0
        if refused:
            raise problem or UserError(f"run_dir: rank 0 could not take {folder.path}; see what was said there")
        yield


def parse(argv: Sequence[str]) -> Config:
    """The configuration that the command line asks for."""
    example = "federation.rounds=10 data.name=caltech101"
    parser = parser_with_settings("train", __doc__, example, epilog=f"settings:\n\n{explained()}")
    args = parser.parse_intermixed_args(argv)  # settings may stand on both sides of an option
    config = configuration.load(args.config, args.settings)
    if config.resume in ("", "auto"):
        return config
    # resume=FOLDER: that run's own configuration, with the settings given now on top.
    folder = RunFolder(config.resume)
    folder.require_run()
    if args.config:
        raise UserError(f"--config: resume={config.resume} goes on with that run's own configuration; leave --config out")
    given = [s for s in args.settings if not s.startswith("resume=")]
    if any(s.startswith("run_dir=") for s in given):
        raise UserError(f"run_dir: resume={config.resume} goes on in that folder; leave run_dir out, or copy the folder first")
    return configuration.load_run(config.resume, [*given, "resume=auto"])


def train(run: Run, folder: RunFolder, manifest: Manifest | None, origin: Origin | None) -> None:
    """All remaining rounds, then the new clients, then the summary."""
    engine, world, rounds = run.engine, run.engine.world, run.config.federation.rounds
    done = manifest.round if manifest else 0
    if done > rounds:
        raise UserError(f"federation.rounds: {folder.path} has already done {done} rounds, more than {rounds}")
    kept = manifest.progress if manifest and manifest.progress.tested_on == run.config.evaluation.tested_on else None  # else measured anew
    zero_shot = Reference(kept.zero_shot, kept.zero_shot_table) if kept else Reference()
    trackers = Trackers(run.config.trackers, folder, settings(run.config))
    with ProgressBar("round", rounds, done, silent=not world.is_main) as bar:
        bar.say(headline(run, done))
        if run.config.evaluation.every and not zero_shot.known(run.config.evaluation):
            engine.evaluation.told = display.testing(bar, "zero-shot")
            zero_shot = run.zero_shot()
        engine.evaluation.told, engine.told = display.testing(bar), display.fine_tuning(bar)
        display.next_round(bar, done)
        engine.interruption.rounds_begin()
        recorder = Recorder(run, folder, bar, trackers, zero_shot, done)
        last = engine.run(done + 1, recorder)
        whole, new_clients = last == rounds, None
        try:
            if whole:
                new_clients = last_tests(run, bar)
        except Interrupted:
            whole = False
            if not run.config.checkpoint.every:  # else it is saved
                recorder.save(last)
        if not whole:
            by = f" by {engine.interruption.by}" if engine.interruption.asked else ""
            bar.say(f"interrupted{by} after round {last} of {rounds}, to be continued: resume=auto")
            trackers.close()
            return
    if world.is_main:
        summary = build_summary(run, zero_shot, folder.read_metrics(), new_clients)
        summary = dataclasses.replace(summary, origin=origin and origin.ended())
        folder.write_summary(summary)
        trackers.run_done(done, summary)
        trackers.close()
        show_result(summary, folder)


def last_tests(run: Run, bar: ProgressBar) -> NewClients | None:
    """What is tested when all rounds are done; gives what new clients reach, if there are any. All ranks enter."""
    if not run.config.evaluation.every:
        return None
    if run.engine.evaluation.reported[0] is None:  # nothing was left to train
        run.engine.evaluate()
    return run.new_clients(display.training_new(bar))


def headline(run: Run, done: int) -> str:
    """One line that says what is about to run."""
    config, world = run.config, run.engine.world
    start = f"from round {done + 1} " if done else ""
    return (
        f"{config.method.name} on {config.data.name} ({config.data.protocol}), {config.backbone.name} {config.backbone.precision}, "
        f"{config.data.clients} clients on {ranks(world)}, {config.federation.rounds} rounds {start}-> {config.run_dir}"
    )


def ranks(world: World) -> str:
    return f"{world.size} rank{'s' if world.size > 1 else ''} ({world.device.type})"


def show_result(summary: RunSummary, folder: RunFolder) -> None:
    """The final table."""
    rows = [("zeroshot", summary.zero_shot, "0 B"), (summary.method, summary.accuracy, megabytes(summary.bytes_per_client_round))]
    about = f"{summary.dataset}, {summary.backbone}, {len(summary.per_client)} clients"
    show(accuracy_table(f"{about} (percent)", rows))
    if summary.selected is not None:
        print(f"the accuracy is that of {summary.selected}")
    if summary.accuracy and summary.accuracy.diagnostics:
        show(diagnostics_table(about, [(name, accuracy) for name, accuracy, _ in rows]))
    if summary.new_clients:
        show(new_clients_table(summary.method, summary.new_clients))
    if summary.privacy:
        print(privacy_line(summary.privacy))
    print(f"summary: {folder.summary}", file=sys.stdout, flush=True)


if __name__ == "__main__":
    run_main(main)
