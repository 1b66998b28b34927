"""Run folders as training leaves them, without training; and what a browser would find in a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pfedmma.records.rows import RoundRow, RunSummary
from pfedmma.system.fields import Fields

SHARED, ADAPTERS, PROMPT = 12_672, 163_200, 1_024
VOID = {"meta", "link", "br", "hr", "img", "input", "base", "col", "embed", "source", "track", "wbr"}


def accuracy(local: float, base: float = 60.0, novel: float | None = 62.0) -> dict[str, Any]:
    """An ``accuracy`` object; the numbers need not belong together."""
    spread = {f"{name}_{kind}": 7.5 for name in ("local", "base", "novel") for kind in ("std", "worst", "worst_decile")}
    return {"local": local, "base": base, "novel": novel, "hm": local - 10.0, "hm_base_novel": novel and 61.0} | spread


def round_(number: int, clients: int, evaluated: dict[str, Any] | None, up: int = SHARED) -> dict[str, Any]:
    """A line of ``metrics.jsonl``."""
    seconds = {"train": 0.4, "input": 0.1, "wait": 0.02, "exchange": 0.01, "evaluate": 0.2 if evaluated else 0.0, "total": 0.63}
    comm = {"shared_parameters": up // 4, "payload_bytes": up, "uplink_bytes": clients * up, "downlink_bytes": clients * up}
    comm |= {"ring_bytes_per_rank": float(up), "collectives": int(up > 0), "time_us": 300.0 + number, "bookkeeping": {}}
    line = {"round": number, "clients": list(range(clients)), "samples": 12 * clients, "loss": 2.0 / number}
    return line | {"seconds": seconds, "comm": comm, "accuracy": evaluated, "split": "test" if evaluated else None}


def diagnosed(margin: float, cka: float | None = 0.75) -> dict[str, Any]:
    """The part of an ``accuracy`` object that ``evaluation.diagnostics`` adds."""
    return {"diagnostics": {"alignment_margin": margin, "modality_gap": 0.25, "ece": 12.5, "shared_cka": cka}}


def member(client: int, before: float | None, after: float | None, classes: Sequence[str] = ("cat", "dog")) -> dict[str, Any]:
    """A client of ``per_client``."""
    row = {"id": client, "domain": None, "classes": list(classes), "train_samples": 12, "test_samples": 5}
    zero_shot = None if before is None else {"local": before, "base": 50.0, "novel": 51.0}
    return row | {"local": after, "base": 60.0, "novel": 62.0, "unseen": None, "zero_shot": zero_shot}


def met(
    ids: Sequence[int], start: float = 50.0, epochs: Sequence[int] = (0, 5), ways: Sequence[str] = ("frozen", "free")
) -> dict[str, Any]:
    """``new_clients`` of a summary: Local begins at ``start`` and gains a point an epoch, two where the shared part is free."""
    rows = []
    for way in ways:
        for k in epochs:
            local = start + (2 * k if way == "free" else k)
            each = [{"local": local, "base": 60.0, "novel": 62.0, "unseen": None} for _ in ids]
            rows.append({"shared": way, "epochs": k, "accuracy": accuracy(local), "per_client": each})
    moved = {"new_clients": {"uplink_bytes": 0, "downlink_bytes": len(ids) * SHARED}}
    return {"ids": list(ids), "start": "seed", "zero_shot": accuracy(45.0), "rows": rows, "bytes": moved}


def summary(method: str = "pfedmma", clients: int = 4, rounds: int = 3, up: int = SHARED, **changes: Any) -> dict[str, Any]:
    """A ``summary.json``."""
    book = {"metrics": {"collectives": 4, "payload_bytes": 160}}
    comm = {"payload_bytes": rounds * up, "uplink_bytes": rounds * clients * up, "downlink_bytes": rounds * clients * up}
    comm |= {"ring_bytes_per_rank": float(rounds * up), "collectives": rounds if up else 0, "time_us_p50": 302.0, "time_us_p95": 345.0}
    comm |= {"algbw_gb_per_s": 0.042, "busbw_gb_per_s": 0.0417, "bookkeeping": book}
    config = {"seed": 0, "method.name": method, "method.dim": 32, "data.name": "shapes", "data.clients": clients, "data.shots": 2}
    config |= {"federation.rounds": rounds, "federation.local_epochs": 2, "federation.participation": 1.0, "federation.batch_size": 32}
    config |= {"optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.momentum": 0.9}
    made = {"method": method, "dataset": "shapes", "protocol": "base_to_novel", "backbone": "tiny", "precision": "fp32", "seed": 0}
    made |= {"skipped_images": 0, "rounds": rounds, "world_size": 2, "device": "cpu"}
    made |= {"accuracy": accuracy(90.0), "zero_shot": accuracy(61.25, 50.0, 51.0)}
    made |= {"per_client": [member(i, 60.0, 60.0 + (-2.5 if i == 1 else 5.0 * i)) for i in range(clients)]}
    made |= {"trained_parameters": 40_800, "shared_parameters": up // 4, "bytes_per_client_round": up, "bytes_down_per_client_round": up}
    made |= {"alternatives": {"all adapters": ADAPTERS, "one prompt": PROMPT}, "comm": comm}
    made |= {"throughput": {"train_images_per_second": 861.0, "seconds_per_round": 0.63}, "versions": {"python": "3.11.7", "torch": "2.6"}}
    made |= {"config": config, "split": "test"}
    return made | changes


def origin(**changes: str) -> dict[str, str]:
    """``origin`` of a summary."""
    made = {"command": "python -m pfedmma.train seed=0", "revision": "0123456789ab"}
    return made | {"started": "2026-11-26T10:00:00Z", "finished": "2026-11-26T10:40:05Z"} | changes


def round_row(number: int, clients: int = 4, evaluated: dict[str, Any] | None = None, **changes: Any) -> RoundRow:
    return RoundRow.from_fields(Fields(round_(number, clients, evaluated) | changes, "a round"))


def run_summary(**changes: Any) -> RunSummary:
    return RunSummary.from_fields(Fields(summary(**changes), "a summary"))


def write_run(folder: Path, made: dict[str, Any] | None = None, rounds: Sequence[dict[str, Any]] | None = None) -> Path:
    """A run folder with this summary (none: a finished run of three rounds, two of them evaluated) and these rounds."""
    made = made or summary()
    clients, up = len(made["per_client"]), made["bytes_per_client_round"]
    if rounds is None:
        rounds = [round_(n, clients, accuracy(70.0 + n) if n > 1 else None, up) for n in (1, 2, 3)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("seed: 0\nmethod:\n  name: pfedmma\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rounds))
    (folder / "summary.json").write_text(json.dumps(made))
    return folder


class Page(HTMLParser):
    """What a page consists of; parsing fails where its tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    @classmethod
    def from_file(cls, path: Path) -> Page:
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def sections(self) -> set[str]:
        return {value for name, value in self.attributes if name == "id"}
