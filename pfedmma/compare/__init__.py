"""Many runs, one table: ``python -m pfedmma.compare FILE [FILE ...]``; called, it does them: ``pfedmma.compare("embedded")``."""

from pfedmma.system.lazy import make_callable

make_callable(__name__)
