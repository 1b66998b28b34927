"""What a person sees of runs at the terminal: a round when it is done, and the table of accuracies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

from rich.table import Table

from pfedmma.accuracy.evaluator import Told
from pfedmma.records.evaluated import DIAGNOSTICS, written
from pfedmma.records.privacy import RoundPrivacy
from pfedmma.records.rows import HEADLINE, IN_HM, TITLES, Accuracy, NewClients, RoundRow
from pfedmma.run.progress import Left
from pfedmma.system.console import ProgressBar, percent, room, table_of, time_stamp


def round_done(progress: ProgressBar, row: RoundRow, left: Left | None = None) -> None:
    """Show a finished round: in place at a terminal, with a line where it was evaluated or the output is a file.

    ``left``: of the rounds to come. In a file the line ends in the seconds of training (with waiting and exchange), those of fine-tuning
    and of testing where there was any, and the time; at a terminal, in the seconds of all.
    """
    state = "  ".join(_training(row))
    progress.update(row.round, state)
    progress.expect(left.seconds if left else None, left.mark if left else "")
    said = [f"round {row.round}/{progress.total}", state]
    if row.accuracy is not None:
        said += [f"{name} {percent(row.accuracy.score(name))}" for name in (*IN_HM, "hm")]  # 80 columns
    if not progress.live:
        progress.say("  ".join([*said, *_took(row), time_stamp()]))
    elif row.accuracy is not None:
        text = "  ".join([*said, f"{row.spent('total'):.2f} s"])
        progress.say(text if len(text) <= room() else "  ".join(said))
    next_round(progress, row.round)


def _took(row: RoundRow) -> Iterator[str]:
    """The seconds of a round, by what it was spent on."""
    yield f"train {row.trained:.2f} s"
    if tuned := row.spent("fine_tune"):
        yield f"fine-tune {tuned:.2f} s"
    if row.accuracy is not None:
        yield f"test {row.spent('evaluate'):.2f} s"


def next_round(progress: ProgressBar, done: int) -> None:
    """Say what is being done after round ``done``."""
    progress.state(f"training round {done + 1}/{progress.total}" if done < progress.total else "")


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
    head = ["method", *(TITLES[name] for name in HEADLINE), "up / client / round"]
    return table_of(title, head, [[method, *_scores(accuracy), moved] for method, accuracy, moved in rows])


def new_clients_table(method: str, new: NewClients) -> Table:
    """What new clients reach after so many epochs alone; zero-shot of the same clients first."""
    head = ["shared part", "epochs", *(TITLES[name] for name in HEADLINE)]
    trained = [[row.shared, str(row.epochs), *_scores(row.accuracy)] for row in new.rows]
    title = f"{method}, {len(new.ids)} new clients after training alone (percent)"
    return table_of(title, head, [["zeroshot", "", *_scores(new.zero_shot)], *trained])


def _scores(accuracy: Accuracy | None) -> list[str]:
    return [percent(accuracy.score(name) if accuracy else None) for name in HEADLINE]


def diagnostics_table(title: str, rows: Sequence[tuple[str, Accuracy | None]]) -> Table:
    """Rows of (name, accuracy or None), of which the diagnostics are shown."""
    found = [
        [method, *(written(name, accuracy.diagnostic(name) if accuracy else None) for name in DIAGNOSTICS)] for method, accuracy in rows
    ]
    return table_of(title, ["method", *DIAGNOSTICS.values()], found)


def privacy_line(privacy: RoundPrivacy) -> str:
    """A line on what the rounds told of one client."""
    to = {"an outsider": privacy.epsilon_outsider, "who knows who took part": privacy.epsilon_known_cohorts}
    to |= {"the server": privacy.epsilon_server}
    each = ", ".join(f"{epsilon:.3g} to {who}" if math.isfinite(epsilon) else f"unbounded to {who}" for who, epsilon in to.items())
    return f"epsilon at delta {privacy.delta:g}: {each}"


SILENCE = 30.0  # seconds without a sign of life, where there is no terminal


def testing(bar: ProgressBar, whom: str = "") -> Told:
    """Says how far an evaluation has come: behind the bar at a terminal, else with a line now and then.

    Clients are tested side by side: the number that is said goes up with the share of all their tests that is done. ``whom``: what stands
    before it.
    """

    def said(done: float, total: int) -> str:
        return f"{whom and f'{whom}: '}testing client {min(int(done) + 1, total)}/{total}"

    return _saying(bar, said)


def training_new(bar: ProgressBar) -> Told:
    """As `testing`, of the training of new clients."""
    return _steps_of(bar, "training new clients")


def fine_tuning(bar: ProgressBar) -> Told:
    """As `testing`, of the training that clients do alone after the last round."""
    return _steps_of(bar, "fine-tuning")


def _steps_of(bar: ProgressBar, what: str) -> Told:
    return _saying(bar, lambda done, total: f"{what}, step {done:.0f}/{total}")


def _saying(bar: ProgressBar, said: Callable[[float, int], str]) -> Told:
    last = begun = time.monotonic()

    def told(done: float, total: int) -> None:
        nonlocal last, begun
        now = time.monotonic()
        if done == 0:
            begun = now
        if bar.live:
            bar.state(said(done, total))
            bar.expect_at_least((now - begun) * (total - done) / max(done, 1e-9))
        elif now - last > SILENCE:
            last = now
            bar.say(f"{said(done, total)}  {time_stamp()}")

    return told
