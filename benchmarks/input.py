"""How fast training images become pixels: this project's pipeline beside a plain DataLoader with PIL, on the same files in one run.

``python benchmarks/input.py --root FOLDER [--size 224] [--workers 2] [--epochs 3]``: FOLDER holds images at any depth. Both sides make
random resized crops with flips. The first epoch decodes; later ones show what keeping decoded images saves. A table, and JSON on the
last line.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.pixels.crop import CROP_RATIO, CROP_SCALE
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.pixels.prefetch import Prefetched, Stopwatch
from pfedmma.data.sources.base import Source
from pfedmma.data.sources.folders import split
from pfedmma.data.sources.images import SUFFIXES

BATCH = 64


class PlainFiles(Dataset):
    """What most training scripts do: open, convert, crop, flip, one image at a time, every epoch."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, CROP_SCALE, CROP_RATIO, transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


def plain(paths: list[Path], size: int, workers: int) -> Callable[[int], Iterator[torch.Tensor]]:
    data = PlainFiles(paths, size)
    return lambda epoch: iter(DataLoader(data, BATCH, shuffle=True, num_workers=workers))


def ours(pixels: Pixels, count: int) -> Callable[[int], Iterator[torch.Tensor]]:
    def batches(epoch: int) -> Iterator[torch.Tensor]:
        gen = torch.Generator().manual_seed(epoch)
        for rows in torch.randperm(count, generator=gen).split(BATCH):
            yield pixels.finish(pixels.stage(rows, *pixels.draws(len(rows), gen)))

    return lambda epoch: iter(Prefetched(batches(epoch), Stopwatch()))


def rates(epochs: int, count: int, start: Callable[[int], Iterator[torch.Tensor]]) -> list[float]:
    """Images a second of each epoch."""
    found = []
    for epoch in range(epochs):
        begin = time.perf_counter()
        seen = sum(len(batch) for batch in start(epoch))
        assert seen == count
        found.append(count / (time.perf_counter() - begin))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--most", type=int, default=1000, help="images at most")
    args = parser.parse_args()
    paths = sorted(p for p in args.root.rglob("*") if p.suffix.lower() in SUFFIXES)[: args.most]
    if not paths:
        parser.error(f"there is no image below {args.root}")
    source = Source("files", ("a",), {"train": split([(path, 0, 0) for path in paths])})
    pixels = Pixels(source, Preprocess(args.size, (0.0,) * 3, (1.0,) * 3), "crop", torch.device("cpu"))
    mine = rates(args.epochs, len(paths), ours(pixels, len(paths)))
    theirs = rates(args.epochs, len(paths), plain(paths, args.size, args.workers))
    table = Table(title=f"{len(paths)} files to {args.size} px, images/s")
    for name in ("epoch", "pfedmma", "DataLoader + PIL", "ratio"):
        table.add_column(name, justify="right")
    for epoch, (a, b) in enumerate(zip(mine, theirs, strict=True), start=1):
        table.add_row(str(epoch), f"{a:.0f}", f"{b:.0f}", f"{a / b:.2f}")
    Console(width=100).print(table)
    record = {
        "files": len(paths),
        "size": args.size,
        "pfedmma_images_per_second": mine,
        "dataloader_images_per_second": theirs,
        "decoded_megabytes_held": pixels.decoded.bytes_held / 1e6,
        "peak_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "workers": args.workers,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
