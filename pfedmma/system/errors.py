"""The one kind of error that a user can cause, and how a program ends on it."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from pfedmma.system import completion
from pfedmma.system.arguments import Paragraphs


class UserError(ValueError):
    """Input that cannot be used. The message is one sentence: what is wrong, where, and what would be right."""


class RankFailure(UserError):
    """What befell one rank and not all of them alike: no other rank will say it."""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that ends like everything else: one line. The shell that asks what could stand next gets its answer."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"formatter_class": Paragraphs, **more})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        completion.answer_if_asked(self)
        return super().parse_args(args, namespace)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        completion.answer_if_asked(self)
        return super().parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows what there is")


def run_main(main: Callable[[], None]) -> None:
    """Run a program's ``main``; a `UserError` ends it with one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a class name shows that there is one
    try:
        with _full_disk_named():
            main()
            sys.stdout.flush()  # what is written at the very end may have nobody to read it either
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        os._exit(128 + signal.SIGPIPE)  # as a shell shows the end of a program without Python's handler
    except UserError as error:
        # The launcher stops every rank as soon as one ends. Ranks that fail together should say so once:
        # the others leave rank 0 the time to speak, and speak themselves if it had nothing to say.
        if not speaks_for_all() and not isinstance(error, RankFailure):
            time.sleep(5.0)
        with contextlib.suppress(OSError):  # what they go to may be full, or gone
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            sys.stdout.flush()
        os._exit(2)  # at once: no teardown may wait for a rank that is still in a collective
    except KeyboardInterrupt as stop:  # by Ctrl-C alone, or with a sentence of the program
        print(": ".join(["interrupted", *map(str, stop.args)]), file=sys.stderr, flush=True)
        os._exit(130)


def speaks_for_all() -> bool:
    """Whether this process is rank 0, or alone, as far as the environment says."""
    return (os.environ.get("RANK") or "0") == "0"


@contextlib.contextmanager
def _full_disk_named() -> Iterator[None]:
    """A log on a full disk ends a run as well."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RankFailure(f"cannot write {error.filename or 'the standard output'}: {error.strerror}; make room there") from error


def _nobody_reads() -> bool:
    """Whether the standard output is a pipe whose reader is gone, as in ``... | head``."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False
