"""What the commands do, for notebooks and scripts: `run`, `compare`, `load_run`. the README.md beside this file shows how."""

from pfedmma.api.comparisons import Comparison as Comparison
from pfedmma.api.comparisons import compare as compare
from pfedmma.api.runs import FinishedRun as FinishedRun
from pfedmma.api.runs import load_run as load_run
from pfedmma.api.runs import run as run
from pfedmma.api.table import Table as Table
