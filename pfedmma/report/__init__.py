"""The report on runs; `pfedmma.report.command` says what it does."""

from pfedmma.report.command import main as main
