"""Averages of accuracies over clients, their harmonic mean (HM), and their spread."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pfedmma.comm.ledger import percentile
from pfedmma.records.evaluated import ClientScores, Diagnostics
from pfedmma.records.rows import COLUMNS, IN_HM, Accuracy, Scores, combined
from pfedmma.system.fields import finite


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean; 0 if any value is 0."""
    return len(values) / sum(1.0 / v for v in values) if all(v > 0 for v in values) else 0.0


def summarise(table: Tensor, domains: Sequence[str | None] = (), diagnostics: Diagnostics | None = None) -> Accuracy:
    """Averages over clients [K, 4] of one data set -> local, base, novel, what follows from them, and the spread over clients.

    ``hm`` is the harmonic mean of the averages of Local, Base and Novel over clients; ``hm_base_novel`` of Base and Novel alone; ``cm``
    as `combined` says. Published averages over data sets are means of such numbers, not made of means
    (`pfedmma.compare.table`). A column with nothing to test is None and is left out of ``hm``. Where clients belong to ``domains``
    [K], ``domains`` is the mean Local accuracy in each and ``domain_average`` the mean of those. ``diagnostics``, if known, stand beside
    them.
    """
    result: Scores = {}
    columns = {name: _finite(table[:, i]) for i, name in enumerate(COLUMNS)}
    if not columns["unseen"]:
        del columns["unseen"]
    for name, values in columns.items():
        result[name] = sum(values) / len(values) if values else None
    present = [v for name in IN_HM if (v := result[name]) is not None]
    result["hm"] = harmonic_mean(present) if present else None
    both = [v for name in ("base", "novel") if (v := result[name]) is not None]
    result["hm_base_novel"] = harmonic_mean(both) if len(both) == 2 else None
    result["cm"] = combined(result["local"], result["hm_base_novel"])
    for name, values in columns.items():
        result[f"{name}_std"] = float(torch.tensor(values, dtype=torch.float64).std(correction=0)) if values else None
        result[f"{name}_worst"] = min(values) if values else None
        result[f"{name}_worst_decile"] = percentile(values, 0.1) if values else None
    names = [name for name in dict.fromkeys(domains) if name is not None]
    own = {name: _finite(table[[d == name for d in domains], 0]) for name in names}
    by_domain = {name: sum(values) / len(values) if values else None for name, values in own.items()}
    if by_domain:
        means = [mean for mean in by_domain.values() if mean is not None]
        result["domain_average"] = sum(means) / len(means) if means else None
    return Accuracy(result, by_domain, diagnostics)


def client_scores(table: Tensor, ids: Sequence[int]) -> ClientScores:
    """The rows of a table [K, 4] of these clients; without columns in which nothing is tested."""
    columns = {name: tuple(map(finite, table[list(ids), i].tolist())) for i, name in enumerate(COLUMNS)}
    return ClientScores(tuple(ids), {name: values for name, values in columns.items() if any(value is not None for value in values)})


def _finite(column: Tensor) -> list[float]:
    return column[torch.isfinite(column)].tolist()
