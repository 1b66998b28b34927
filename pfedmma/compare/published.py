"""Accuracies that the paper publishes, to stand beside one's own of the same setting.

Source: arXiv 2507.05394 (ICLR 2026), averages over seven data sets at 16 shots with ViT-B/16: percent, Local / Base / Novel / HM, where HM
is the mean of each data set's HM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pfedmma.compare.done import Done
from pfedmma.config.schema import Config, resolve

SOURCE = "published: arXiv 2507.05394, averages over seven data sets"
AVERAGES = {
    "zeroshot": (76.36, 76.81, 81.21, 78.03),
    "promptfl": (88.93, 88.95, 75.36, 83.09),
    "fedpgp": (95.38, 76.49, 71.68, 79.09),
    "fedotp": (97.34, 18.00, 36.69, 31.08),
    "pfedmoap": (97.89, 61.82, 66.60, 71.05),
    "pfedmma": (97.17, 77.40, 81.49, 84.15),
}
COLUMNS = ("local", "base", "novel", "hm")
DATA_SETS = frozenset(("sun397", "oxford_flowers", "dtd", "caltech101", "oxford_pets", "food101", "ucf101"))
BACKBONES = ("ViT-B-16", "ViT-B-16-quickgelu")  # with OpenAI's weights, from a tag or a file
EPOCHS = 100  # 50 rounds of 2 local epochs; one of the released scripts has 100 of 1


def beside(runs: Sequence[Done]) -> dict[str, float] | None:
    """The published averages in the setting of one method's ``runs``, by column; None where the paper has no such setting."""
    names = {run.plan.config.method.name for run in runs}
    if len(names) != 1 or {run.plan.config.data.name for run in runs} != DATA_SETS:
        return None
    if not all(_as_published(run.plan.config) for run in runs):
        return None
    found = AVERAGES.get(names.pop())
    return None if found is None else dict(zip(COLUMNS, found, strict=True))


def _as_published(config: Config) -> bool:
    data, federation = config.data, config.federation
    own = resolve({"method": {"name": config.method.name}})
    trained = config.method.name == "zeroshot" or (
        federation.rounds * federation.local_epochs == EPOCHS
        and math.isclose(federation.participation, 1.0)
        and not federation.loses_uploads
        and (federation.batch_size, config.method, config.optimizer) == (own.federation.batch_size, own.method, own.optimizer)
    )
    same = (data.protocol, data.shots, data.clients, config.evaluation.split) == ("base_to_novel", 16, 10, "test")
    return trained and same and config.backbone.name in BACKBONES and config.backbone.pretrained != "none"
