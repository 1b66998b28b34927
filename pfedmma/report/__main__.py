"""Report on runs, as tables and as a page: ``python -m pfedmma.report``."""

from pfedmma.report.command import main
from pfedmma.system.errors import run_main

if __name__ == "__main__":
    run_main(main)
