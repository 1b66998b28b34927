"""``python -m pfedmma.report``."""

from pfedmma.errors import run_main
from pfedmma.report.command import main

if __name__ == "__main__":
    run_main(main)
