"""Python reads this first where the folder is in PYTHONPATH: a rank then has fewer images, and rounds as slow as the file PACE says."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

if "LOCAL_RANK" in os.environ and "PACE" in os.environ:
    from pfedmma.data.sources import shapes
    from pfedmma.engine import rounds

    shapes.PER_CLASS.update(train=8, val=1, test=1)
    real = rounds.train_cohort

    def train_cohort(*args: Any) -> Any:
        time.sleep(float(Path(os.environ["PACE"]).read_text()))
        return real(*args)

    rounds.train_cohort = train_cohort
