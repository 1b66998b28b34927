"""``python -m pfedmma.data describe``: the earlier name of ``python -m pfedmma.describe``."""

from __future__ import annotations

import sys

from pfedmma.describe import main
from pfedmma.system.errors import run_main

if __name__ == "__main__":
    run_main(lambda: main([item for item in sys.argv[1:] if item != "describe"]))
