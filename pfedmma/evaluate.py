"""Evaluate a run's newest checkpoint again: ``python -m pfedmma.evaluate RUN [key=value ...]``, also under torchrun.

The run folder is only read. Settings on the command line may change what does not make it another run, for example
``evaluation.split=val`` or ``data.root=...``. With ``evaluation.text_features=first`` the clients are tested with the text features that
the run has kept, or, if it kept none, with those of the first client now. ``evaluation.select`` is not read: one round is tested. The last
line is the result as JSON.

exit status: 0; 2 if there is nothing to evaluate.
"""

from __future__ import annotations

from pfedmma.comm.world import World, open_world
from pfedmma.config import completers
from pfedmma.config import schema as configuration
from pfedmma.config.arguments import parser_with_help
from pfedmma.config.schema import Config
from pfedmma.records.checkpoint.read import not_kept, say_reported
from pfedmma.records.folder import RunFolder
from pfedmma.run import display
from pfedmma.run.assembly import assemble
from pfedmma.run.display import accuracy_table, diagnostics_table, new_clients_table
from pfedmma.run.resume import restore
from pfedmma.run.summary import per_client
from pfedmma.system.arguments import positive
from pfedmma.system.completion import completed_by
from pfedmma.system.console import ProgressBar, show
from pfedmma.system.errors import UserError, run_main
from pfedmma.system.files import to_json
from pfedmma.system.memory import shortage_named


def main(argv: list[str] | None = None) -> None:
    parser = parser_with_help("evaluate", __doc__)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--round", type=positive, metavar="N", help="the round of a kept checkpoint (default: the newest)")
    settings = parser.add_argument("settings", nargs="*", metavar="key=value", help="for example evaluation.split=val")
    completed_by(settings, completers.settings)
    args = parser.parse_intermixed_args(argv)
    folder = RunFolder(args.run)
    folder.require_run()
    config = configuration.load_run(args.run, [*args.settings, "evaluation.select=last"])  # one round is tested
    world = open_world(config.distributed)
    with shortage_named():
        evaluate(config, folder, world, args.round)
    world.close()


def evaluate(config: Config, folder: RunFolder, world: World, round_: int | None = None) -> None:
    """All accuracies of the newest checkpoint, or that of ``round_``, shown. All ranks enter."""
    run = assemble(config, world)
    manifest = restore(run, folder, round_)
    if manifest is None and round_ is not None:
        raise not_kept(folder.checkpoints, round_)
    if manifest is None:
        raise UserError(f"{folder.path} has no good checkpoint to evaluate; train with checkpoint.every greater than 0")
    if round_ is None and world.is_main:
        say_reported(folder.checkpoints, manifest)
    with ProgressBar("testing", 3, silent=not world.is_main) as bar:
        run.engine.evaluation.told = display.testing(bar)
        accuracy = run.engine.evaluate()
        bar.advance()
        run.engine.evaluation.told = display.testing(bar, "zero-shot")
        zero_shot = run.zero_shot()
        run.engine.evaluation.told = display.testing(bar)
        bar.advance()
        new_clients = run.new_clients(display.training_new(bar))
        bar.advance()
    if world.is_main:
        rows = [("zeroshot", zero_shot.accuracy, ""), (config.method.name, accuracy, "")]
        about = f"{folder.path} after round {manifest.round}, {config.evaluation.split} split"
        show(accuracy_table(f"{about} (percent)", rows))
        if config.evaluation.diagnostics:
            show(diagnostics_table(about, [(name, found) for name, found, _ in rows]))
        if new_clients:
            show(new_clients_table(config.method.name, new_clients))
        result = {
            "round": manifest.round,
            "split": config.evaluation.split,
            "accuracy": accuracy.to_json(),
            "zero_shot": zero_shot.accuracy and zero_shot.accuracy.to_json(),
            "per_client": [client.to_json() for client in per_client(run, zero_shot)],
        } | ({"new_clients": new_clients.to_json()} if new_clients else {})
        print(to_json(result), flush=True)


if __name__ == "__main__":
    run_main(main)
