"""What a person sees of runs at the terminal: a round when it is done, and the table of accuracies."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from pfedmma.accuracy.evaluator import Told
from pfedmma.records.evaluated import DIAGNOSTICS, written
from pfedmma.records.privacy import RoundPrivacy
from pfedmma.records.rows import HEADLINE, IN_HM, TITLES, Accuracy, NewClients, RoundRow
from pfedmma.system.console import ProgressBar, percent, printable


def round_done(progress: ProgressBar, row: RoundRow) -> None:
    """Show a finished round: in place at a terminal, with a line where it was evaluated or the output is a file."""
    state = "  ".join(_training(row))
    progress.update(row.round, state)
    if row.accuracy is not None:
        state += "  " + "  ".join(f"{name} {percent(row.accuracy.score(name))}" for name in (*IN_HM, "hm"))  # 80 columns
    if row.accuracy is not None or not progress.live:
        progress.say(f"round {row.round}/{progress.total}  {state}  {row.spent('total'):.2f} s")


def _training(row: RoundRow) -> Iterator[str]:
    """What there is to say of a round's training."""
    if not row.clients:
        yield "nobody took part"
    if row.loss is not None:
        yield f"loss {row.loss:.4f}"
    if row.lost is not None and row.lost.count:
        yield f"lost {row.lost.count} of {len(row.clients)}"
    if row.simulated_seconds is not None:
        yield f"{row.simulated_seconds:,.2f} simulated s"


def accuracy_table(title: str, rows: Sequence[tuple[str, Accuracy | None, str]]) -> Table:
    """Rows of (name, accuracy or None, bytes up per client and round)."""
    table = Table(title=escape(printable(title)))
    table.add_column("method")
    for name in HEADLINE:
        table.add_column(TITLES[name], justify="right")
    table.add_column("up / client / round", justify="right")
    for method, accuracy, moved in rows:
        table.add_row(escape(printable(method)), *(percent(accuracy.score(name) if accuracy else None) for name in HEADLINE), moved)
    return table


def new_clients_table(method: str, new: NewClients) -> Table:
    """What new clients reach after so many epochs alone; zero-shot of the same clients first."""
    table = Table(title=escape(printable(f"{method}, {len(new.ids)} new clients after training alone (percent)")))
    table.add_column("shared part")
    for name in ("epochs", *(TITLES[name] for name in HEADLINE)):
        table.add_column(name, justify="right")
    for way, epochs, accuracy in (("zeroshot", "", new.zero_shot), *((row.shared, str(row.epochs), row.accuracy) for row in new.rows)):
        table.add_row(way, epochs, *(percent(accuracy.score(name)) for name in HEADLINE))
    return table


def diagnostics_table(title: str, rows: Sequence[tuple[str, Accuracy | None]]) -> Table:
    """Rows of (name, accuracy or None), of which the diagnostics are shown."""
    table = Table(title=escape(printable(title)))
    table.add_column("method")
    for name in DIAGNOSTICS.values():
        table.add_column(name, justify="right")
    for method, accuracy in rows:
        table.add_row(escape(printable(method)), *(written(name, accuracy.diagnostic(name) if accuracy else None) for name in DIAGNOSTICS))
    return table


def privacy_line(privacy: RoundPrivacy) -> str:
    """A line on what the rounds told of one client."""
    to = {"an outsider": privacy.epsilon_outsider, "who knows who took part": privacy.epsilon_known_cohorts}
    to |= {"the server": privacy.epsilon_server}
    each = ", ".join(f"{epsilon:.3g} to {who}" if math.isfinite(epsilon) else f"unbounded to {who}" for who, epsilon in to.items())
    return f"epsilon at delta {privacy.delta:g}: {each}"


SILENCE = 30.0  # seconds without a sign of life, where there is no terminal


def testing(bar: ProgressBar) -> Told:
    """Says how far an evaluation has come: behind the bar at a terminal, else with a line now and then."""
    return _saying(bar, "testing")


def training_new(bar: ProgressBar) -> Told:
    """As `testing`, of the training of new clients."""
    return _saying(bar, "steps of new clients")


def _saying(bar: ProgressBar, what: str) -> Told:
    last = [time.monotonic()]

    def told(done: int, total: int) -> None:
        text = f"{what}, {done} of {total}"
        if bar.live:
            bar.state(text)
        elif time.monotonic() - last[0] > SILENCE:
            last[0] = time.monotonic()
            bar.say(text)

    return told
