"""Which rounds the numbers of a table are of, where they are not simply those of the last ones."""

from __future__ import annotations

from collections.abc import Iterable

from pfedmma.records.selected import BEST_TEST, BEST_VAL, Selected

_WHY = {
    BEST_VAL: "the best HM on the validation split",
    BEST_TEST: "the best Local on the test split, chosen on the images that it is tested on: optimistic",
}


def notes(runs: Iterable[tuple[str, Selected | None]]) -> list[str]:
    """A sentence for each way of selecting a round that is among the runs: which methods' runs, and which rounds it came to.

    ``runs``: (method, which round its numbers are of; None: the last).
    """
    found: dict[str, dict[str, list[int]]] = {}
    for method, selected in runs:
        if selected is not None:
            found.setdefault(selected.by, {}).setdefault(method, []).append(selected.round)
    sentences = []
    for by, methods in found.items():
        each = (f"{method} (round{'s' if len(rounds) > 1 else ''} {', '.join(map(str, rounds))})" for method, rounds in methods.items())
        sentences.append(f"evaluation.select={by}: the round with {_WHY.get(by, 'another best')}. So are the numbers of {'; '.join(each)}.")
    return sentences
