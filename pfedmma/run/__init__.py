"""From settings to the parts of a run, and from a run back to its parts; called, it does one: ``pfedmma.run("shapes", rounds=5)``."""

from pfedmma.system.lazy import make_callable

make_callable(__name__)
