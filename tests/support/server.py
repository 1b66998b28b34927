"""What the server of `ranks` does once, before it forks: each process would do it again, for a sixth of a second to four."""

import accelerate  # noqa: F401
import open_clip  # noqa: F401

import tests.support.programs
import tests.support.ranks  # noqa: F401
from pfedmma.clip.backbone import simple_tokenizer

simple_tokenizer(16)  # that of the tiny backbone
