"""Whole runs on real files: what a user with data on disk would start, as small as it can be."""

from __future__ import annotations

import json
from pathlib import Path

from pfedmma.train import main


def run(path: Path, *settings: str) -> tuple[dict, dict]:
    """(the first round's metrics, the summary) of one round."""
    main([f"run_dir={path}", "federation.rounds=1", "federation.local_epochs=1", "checkpoint.every=0", *settings])
    first = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    return first, json.loads((path / "summary.json").read_text())


def test_caltech101_with_the_tiny_backbone(real_data: Path, tmp_path: Path):
    first, summary = run(tmp_path / "run", "data.name=caltech101", f"data.root={real_data}", "data.shots=2")
    assert first["samples"] == 50 * 2 and first["comm"]["payload_bytes"] == 4 * summary["shared_parameters"]
    assert len(summary["per_client"]) == 10 and all(len(row["classes"]) == 5 for row in summary["per_client"])
    # 60 of 100 classes' names mean nothing to a CLIP that has seen shapes only; what counts is that all of it was measured.
    assert all(summary[which][name] is not None for which in ("accuracy", "zero_shot") for name in ("local", "base", "novel", "hm"))


def test_caltech101_with_a_real_architecture(real_data: Path, tmp_path: Path):
    backbone = ["backbone.name=ViT-B-32", "backbone.pretrained=none", "evaluation.every=0", "federation.participation=0.2"]
    first, summary = run(tmp_path / "run", "data.name=caltech101", f"data.root={real_data}", "data.shots=1", *backbone)
    assert summary["shared_parameters"] == 8448 and first["comm"]["uplink_bytes"] == 2 * 33_792
    assert 3.0 < first["loss"] < 5.0  # near log(50): random weights tell nothing apart


def test_pacs_by_domains_with_one_held_out(real_data: Path, tmp_path: Path):
    data = ["data.name=domainfolder", f"data.root={real_data / 'pacs'}", "data.protocol=domains", "data.shots=2", "data.clients=6"]
    _, summary = run(tmp_path / "run", *data, "data.held_out_domain=sketch")
    assert {row["domain"] for row in summary["per_client"]} == {"art_painting", "cartoon", "photo"}
    assert set(summary["accuracy"]["domains"]) == {"art_painting", "cartoon", "photo"}
    assert summary["accuracy"]["unseen"] is not None and summary["accuracy"]["novel"] is None


def test_cifar10_as_folders_by_dirichlet(real_data: Path, tmp_path: Path):
    data = ["data.name=imagefolder", f"data.root={real_data / 'cifar10-images'}", "data.protocol=dirichlet", "data.shots=20"]
    first, summary = run(tmp_path / "run", *data, "data.clients=5", "federation.participation=0.4", "data.beta=1.0")
    assert len(first["clients"]) == 2
    assert sum(row["train_samples"] for row in summary["per_client"]) == 200
    assert sum(row["test_samples"] for row in summary["per_client"]) == 1000
