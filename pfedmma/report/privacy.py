"""What a run's settings leave open, the worst first, and what its noise bounds. ``pfedmma/server/README.md`` has the measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pfedmma.records.privacy import RoundPrivacy
from pfedmma.report import charts
from pfedmma.report.charts import Curve
from pfedmma.report.costs import size
from pfedmma.report.document import Block, Figure, Section, Table
from pfedmma.report.runs import Report, with_curves
from pfedmma.server.privacy import CLIENTS

NONE = "-"
LITTLE = 10.0  # an epsilon above it lets the odds of any guess about a client grow more than 20,000 times


def section(runs: Sequence[Report]) -> Section:
    """What is open, epsilon, and the norm of what clients receive."""
    rows = [[run.label, sentence] for run in runs for sentence in left_open(run)]
    blocks: list[Block] = [Table("What the settings leave open, the worst first", ("run", "what is open"), rows, (1,))]
    if any(told(run) for run in runs):
        blocks.append(_epsilons(runs))
    if any(run.comm.key_exchange_bytes_modelled for run in runs):
        blocks.append(_keys(runs))
    drawn = [run for run in with_curves(runs) if any(row.shared_norm is not None for row in run.rounds)]
    norms = [Curve(run.label, [(float(row.round), row.shared_norm) for row in run.rounds], run.look) for run in drawn]
    if norms:
        panels = [("Norm of what clients receive", charts.line_chart(norms, lambda value: f"{value:.3g}"))]
        blocks.append(Figure(panels, charts.key_of(drawn)))
    return Section("privacy", "Privacy", blocks)


def told(run: Report) -> RoundPrivacy | None:
    """What has been told after the last round; None where no noise is added."""
    return run.rounds[-1].privacy if run.rounds else None


def left_open(run: Report) -> Iterator[str]:
    """Sentences on what a run protects from nobody."""
    if run.up == 0:
        yield "Nothing travels but who takes part, and what is tested."
        return
    setting = run.config.get
    noise, secure = told(run), setting("privacy.secure_sum") == "True"
    by_clients = noise is not None and setting("privacy.noise") == CLIENTS
    if not secure:
        yield f"The server sees each client's upload{', with a share of the noise' if by_clients else ''}."
        if not by_clients:
            yield from _in_an_upload(run)
    if noise is None:
        yield "No noise is added: nothing bounds what the sums tell of one client; a sum of few clients tells which classes are present."
    else:
        if not by_clients:
            yield f"The server adds the noise itself: nothing bounds what it learns from the {'sums' if secure else 'uploads'} before."
        worst = max(noise.epsilon_outsider, noise.epsilon_known_cohorts)
        if worst > LITTLE:
            yield f"An epsilon of {_shown(worst)} bounds little."
    if (noise or secure) and not setting("privacy.key_file"):
        yield "Noise and masks follow from the seed: who knows it can take them off. A deployment sets privacy.key_file."
    yield (
        "Not covered in any case: a client's exported model, checkpoints, and what metrics and summary hold (losses, who takes part, class "
        "names, numbers of images)."
    )


def _in_an_upload(run: Report) -> Iterator[str]:
    """What single uploads tell, by what has been measured."""
    alike = run.config.get("method.private_init", "shared") == "shared"
    if run.private == 0 or alike:
        yield "All that travels begins alike in all clients, so a client's first uploads name its classes and tell its images from others."
    yield "Uploads tell a client's domain, and its uploads can be linked from round to round."


def _epsilons(runs: Sequence[Report]) -> Table:
    rows = []
    for run in runs:
        noise = told(run)
        if noise is None:
            rows.append([run.label, *[NONE] * 6])
            continue
        seen = map(_shown, (noise.epsilon_outsider, noise.epsilon_known_cohorts, noise.epsilon_server))
        rows.append([run.label, run.config.get("privacy.clip", NONE), f"{noise.noise_multiplier:.4g}", *seen, f"{noise.delta:g}"])
    columns = ("run", "norm", "noise / norm", "outsider", "who knows who took part", "server", "delta")
    return Table("Epsilon after the last round, to whom; - where no noise is added, unbounded where nothing bounds it", columns, rows)


def _keys(runs: Sequence[Report]) -> Table:
    rows = [[run.label, size(run.comm.key_exchange_bytes_modelled), size(run.comm.uplink_bytes + run.comm.downlink_bytes)] for run in runs]
    return Table(
        "Keys of the secure sum, a model: what all participants would send and receive", ("run", "for keys", "uploads and downloads"), rows
    )


def _shown(epsilon: float) -> str:
    return f"{epsilon:.3g}" if math.isfinite(epsilon) else "unbounded"
