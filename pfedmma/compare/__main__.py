"""Run a grid of methods, data sets, shots and seeds, and tabulate it: ``python -m pfedmma.compare FILE [FILE ...] [key=value ...]``.

FILE is a path, or the name of a file of the package, such as embedded; `pfedmma.compare.grid` says what one holds. Finished runs are not
done again and interrupted ones go on, so the same command continues after anything; what a run says is added to its log. At a terminal each
run that is going on has a line, with its round, how long it still takes and its log. Settings on the command line go to every run; one with
several values, such as method.dim=8,32 or seed=0,1,2, makes or extends the grid. Where a file chooses on validation data, `--dry-run`
prints the candidates; once they are done, the chosen runs.

exit status: 0; 2 if a run failed, or there is nothing to run or to show; 130 if it is interrupted: the same command continues.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pfedmma.compare import against, grid, new_clients, schedule, selection, table, written
from pfedmma.compare.board import Durations
from pfedmma.compare.done import Done, Failed
from pfedmma.compare.grid import Plan
from pfedmma.compare.selection import Choice
from pfedmma.config import completers, shipped
from pfedmma.config.arguments import parser_with_help
from pfedmma.records.folder import RunFolder
from pfedmma.report import page
from pfedmma.report.runs import labelled, of_finished
from pfedmma.run.finished import finished
from pfedmma.system.arguments import positive
from pfedmma.system.completion import completed_by
from pfedmma.system.console import show, wrapped
from pfedmma.system.errors import UserError, run_main
from pfedmma.system.files import write_atomically


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    files = [shipped.located(item, comparisons=True) for item in args.items if "=" not in item]
    overrides = [item for item in args.items if "=" in item]
    if not files:
        raise UserError("no compare file is given; write for example python -m pfedmma.compare embedded")
    out = args.out or grid.ROOT / "+".join(file.stem for file in files)
    if len(files) == 1:
        plans = grid.read(files[0], overrides, out)
    else:
        plans = [plan for file in files for plan in grid.read(file, overrides, args.out and args.out / file.stem, group=file.stem)]
    if args.dry_run:
        refuse_what_cannot_be(plans)
        for plan in [*plans, *_chosen(plans)]:
            if not schedule.settled(plan):
                schedule.write_plan(plan)
                print(shlex.join(schedule.command(plan, args.ranks)))
    else:
        carry_out(plans, None if args.table_only else schedule.Slots(args.jobs, args.ranks), out, args.radar)


def carry_out(plans: Sequence[Plan], slots: schedule.Slots | None, out: Path, radar: bool = False) -> list[Done]:
    """Do what is not done, unless there are no ``slots``; show and write the tables of all that is, which are returned.

    Raises:
        UserError: the runs cannot be; one of them failed, after the tables; or there is nothing to show.
    """
    refuse_what_cannot_be(plans)
    failed, started = schedule.failed_before(plans) if slots is None else [], len(plans)
    if slots is not None:
        took = Durations()
        failed = schedule.run_all(plans, slots, took)
        if chosen := _chosen(plans):
            print("what is chosen on the validation split, on the test split:", flush=True)
            failed += schedule.run_all(chosen, slots, took)
            started += len(chosen)
    choices = selection.choices(plans)
    done = collect(selection.reported(plans, choices))
    if done:
        write(done, choices, out, failed, radar)
    if failed and slots is not None:
        raise UserError(f"{len(failed)} of {started} runs failed; the first is {failed[0]}; the same command tries them again")
    selection.require_some(choices)
    if not done:
        raise UserError("none of the runs is finished yet; leave --table-only out to do them")
    return done


def refuse_what_cannot_be(plans: Sequence[Plan]) -> None:
    """Raise a `UserError` where two runs, or a run and an earlier one of other settings, would share a folder."""
    grid.refuse_shared_folders(plans)
    schedule.require_one_setting_a_run([*plans, *(plan.on_test(seed) for plan in plans for seed in plan.test_seeds)])


def _chosen(plans: Sequence[Plan]) -> list[Plan]:
    return [plan for choice in selection.choices(plans) for plan in choice.runs]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_with_help("compare", __doc__)
    items = parser.add_argument("items", nargs="*", metavar="FILE or key=value", help="compare files, and settings for every run")
    completed_by(items, completers.compare_items)
    parser.add_argument("--out", type=Path, help="folder of the runs and tables (default runs/compare/<name of the file>)")
    parser.add_argument("--jobs", type=positive, default=1, help="how many runs at once (default 1)")
    parser.add_argument("--ranks", type=positive, default=1, help="processes of each run (default 1; one a GPU where there are GPUs)")
    parser.add_argument("--dry-run", action="store_true", help="write the settings of each run that is not done and print its command")
    parser.add_argument("--table-only", action="store_true", help="start nothing: tables and figures of what is done")
    parser.add_argument("--radar", action="store_true", help="also draw the final scores as a radar, its radius from zero")
    return parser.parse_intermixed_args(argv)


def collect(plans: Sequence[Plan]) -> list[Done]:
    """All finished runs."""
    done = []
    for plan in plans:
        if (summary := finished(plan.config)) is not None:
            rows = RunFolder(plan.config.run_dir).read_metrics()
            done.append(Done(plan, summary, [row.tested_on(summary.split) for row in rows]))
    return done


def write(runs: Sequence[Done], choices: Sequence[Choice], out: Path, failed: Sequence[Failed] = (), radar: bool = False) -> None:
    """Show the tables and write them, the figures and the page, below ``out``."""
    sheets = [*table.sheets(runs, choices, failed), *against.sheets(runs), *new_clients.sheets(runs)]
    for sheet in sheets:
        show(written.terminal(sheet), width=140)
        for note in sheet.notes:
            print(wrapped(note))
    print(wrapped(table.NOTE))
    files = {
        "table.md": written.markdown(sheets),
        "table.tex": written.latex(sheets),
        "table.csv": written.table_csv(runs),
        "runs.csv": written.runs_csv(runs),
    }
    if runs[0].plan.baseline:
        files["differences.csv"] = against.csv(runs)
    if choices:
        files["candidates.csv"] = written.candidates_csv(choices)
    if any(run.summary.new_clients for run in runs):
        files["new_clients.csv"] = new_clients.csv(runs)
    out.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_atomically(out / file, text.encode())
    try:
        from pfedmma.compare import figures
    except ModuleNotFoundError:
        print('no figures: they need matplotlib, pip install "pfedmma[plots]"', file=sys.stderr)
    else:
        figures.draw(runs, out, radar)
    reported = [of_finished(RunFolder(run.plan.config.run_dir), run.summary, run.rounds) for run in runs]
    page.write(labelled(reported, [run.plan.method for run in runs]), out / "report.html")
    print(f"tables and figures: {out}; report: {out / 'report.html'}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is an interruption: the runs are ended in order
    run_main(main)
