"""The one kind of error that a user can cause, and how a program ends on it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Input that cannot be used. The message is one sentence: what is wrong, where, and what would be right."""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that ends like everything else: one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows what there is")


def run_main(main: Callable[[], None]) -> None:
    """Run a program's ``main``; a `UserError` ends it with one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        # The launcher stops every rank as soon as one ends. Ranks that fail together should say so once:
        # the others leave rank 0 the time to speak, and speak themselves if it had nothing to say.
        rank = int(os.environ.get("RANK", "0"))
        if rank != 0:
            time.sleep(5.0)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)  # at once: no teardown may wait for a rank that is still in a collective
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)
