"""What a file is that holds no weights: told by its first bytes, so that the message says what would be right."""

from __future__ import annotations

import re

HEAD = 512  # bytes that tell
_BYTES = (
    (b"\x1f\x8b", "it is compressed by gzip; unpack it"),
    (b"BZh", "it is compressed by bzip2; unpack it"),
    (b"\xfd7zXZ", "it is compressed by xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "it is compressed by zstd; unpack it"),
    (b"7z\xbc\xaf", "it is a 7z archive; unpack it"),
    (b"\x89HDF", "it is an HDF5 file, as TensorFlow and Keras write; give weights of PyTorch"),
    (b"GGUF", "it is a GGUF file; give weights of PyTorch"),
    (b"\x93NUMPY", "it is an array of numpy; give weights of PyTorch"),
)
_TEXTS = (
    ("version https://git-lfs", "it is a Git LFS pointer, not the file that it stands for; fetch that with git lfs pull"),
    ("<!doctype html", "it is an HTML page, as a download leaves that needs a login or another address; download the file itself"),
    ("<html", "it is an HTML page, as a download leaves that needs a login or another address; download the file itself"),
    ("<?xml", "it is an XML page, as a download leaves that was refused; download the file itself"),
)


class NoWeights(ValueError):
    """A file that cannot be used as weights: one line on what is wrong with it, and what would be right."""


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON header in eight bytes, and that header."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32


def refuse_other_kinds(head: bytes) -> None:
    """Raise `NoWeights` for a file that its first `HEAD` bytes show to be neither a checkpoint nor a zip archive."""
    if not head:
        raise NoWeights("it is empty; copy or download it again")
    for start, says in _BYTES:
        if head.startswith(start):
            raise NoWeights(says)
    if head[257:262] == b"ustar":
        raise NoWeights("it is a tar archive; unpack it and give the file of weights in it")
    text = _text(head)
    if text is None:
        return
    for word, says in _TEXTS:
        if text.lower().startswith(word):
            raise NoWeights(says)
    if text.startswith("{") and '"weight_map"' in text:
        raise NoWeights("it is an index of weights that lie in several files; join these into one")
    first = re.sub(r"[^\x20-\x7e]", "?", text.splitlines()[0] if text else "")[:40]
    raise NoWeights(f"it is a text ('{first}'), no weights; copy or download it again")


def _text(head: bytes) -> str | None:
    """The beginning of a text without its byte-order mark and leading blanks, None of anything else."""
    if any(byte < 9 or 13 < byte < 32 for byte in head):
        return None
    for cut in range(4 if len(head) == HEAD else 1):  # a character may be cut off at the end
        try:
            return head[: len(head) - cut].decode("utf-8-sig").lstrip()
        except UnicodeDecodeError:
            continue
    return None
