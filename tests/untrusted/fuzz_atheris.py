"""Coverage-guided fuzzing of everything that reads a file of someone else; for people, not collected by pytest.

    pip install atheris
    python -m tests.untrusted.fuzz_atheris adapter -max_total_time=60

The first argument is a kind of file in `specimens` (or ``all``: each kind in turn, in a process of its own), the others are
libFuzzer's. A good file is the first input. Whatever is neither read nor refused in a sentence ends the run with a traceback, as does
an input that takes longer than ``-timeout`` (here 10 s) or more memory than ``-rss_limit_mb`` (here 4000); the input is kept in
``crash-*``, and ``python -m tests.untrusted.fuzz_atheris adapter crash-...`` repeats it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris
import open_clip  # noqa: F401
import torchvision  # noqa: F401

with atheris.instrument_imports(include=["pfedmma", "yaml"]):
    from tests.support.specimens import SPECIMENS

DEFAULTS = ("-timeout=10", "-rss_limit_mb=4000", "-max_len=4096")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in (*SPECIMENS, "all"):
        raise SystemExit(f"usage: {sys.argv[0]} all|{'|'.join(SPECIMENS)} [libFuzzer's arguments]")
    name, *more = sys.argv[1:]
    if name == "all":
        for each in SPECIMENS:
            print(f"== {each}", flush=True)
            subprocess.run([sys.executable, "-m", "tests.untrusted.fuzz_atheris", each, *more], check=True)
        return
    with tempfile.TemporaryDirectory() as place:
        corpus, folder = Path(place) / "corpus", Path(place) / "files"
        corpus.mkdir()
        folder.mkdir()
        (corpus / "good").write_bytes(SPECIMENS[name].good())
        given = [part for part in more if not part.startswith("-")]
        arguments = [sys.argv[0], *DEFAULTS, *more, *([] if given else [str(corpus)])]
        with open(os.devnull, "w") as nowhere:

            def one(data: bytes) -> None:
                with contextlib.redirect_stderr(nowhere):  # warnings of damaged checkpoints
                    SPECIMENS[name].outcome(folder, data)

            atheris.Setup(arguments, one)
            atheris.Fuzz()


if __name__ == "__main__":
    main()
