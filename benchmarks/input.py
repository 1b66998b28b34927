"""How fast training images become pixels: this project's pipeline beside a plain DataLoader with PIL, on the same files in one run.

    python benchmarks/input.py --root FOLDER [--size 224] [--workers 2] [--epochs 3] [--device auto] [--decode reduced]
    python benchmarks/input.py --drawn caltech101,food101,sun397

FOLDER holds images at any depth; ``--drawn`` draws JPEG files of the sizes that are usual in these data sets, in a temporary folder. Both
sides make random resized crops with flips; this project's on the device, the DataLoader's in host memory. The first epoch decodes; later
ones show what keeping decoded images saves. A table, and JSON on the last line.

Last comes what is left for the host of a step of ``--step`` images once all rest on a GPU. No GPU is asked: the host draws the crops and
says where they lie, whatever the device is. It is one thread's time, as in the thread that prepares batches.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from drawn_files import write_pictures
from machine import machine, publish
from PIL import Image
from programs import device_from, require_at_least
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pfedmma.clip.preprocess import Preprocess
from pfedmma.data.pixels.crop import CROP_RATIO, CROP_SCALE
from pfedmma.data.pixels.device_images import DeviceImages
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.pixels.prefetch import Prefetched, Stopwatch
from pfedmma.data.sources.base import Source
from pfedmma.data.sources.folders import split
from pfedmma.data.sources.images import SUFFIXES
from pfedmma.system.console import show
from pfedmma.system.errors import UserError, run_main

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
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(count / (time.perf_counter() - begin))
    return found


def resident(pixels: Pixels, count: int, step: int) -> dict[str, float]:
    """Milliseconds of the host, and bytes that cross over, of a step of ``step`` images that rest on the device: best of ten."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pixels.on_device = DeviceImages(torch.device("cpu"), 1e12)
    rows = torch.arange(step) % count
    seconds, brought = [], 0
    for number in range(11):
        gen = torch.Generator().manual_seed(number)
        begin = time.perf_counter()
        staged = pixels.stage(rows, *pixels.draws(step, gen))
        seconds.append(time.perf_counter() - begin)
        assert staged.crops is not None
        brought = staged.images.nbytes + staged.crops.nbytes
    torch.set_num_threads(threads)
    left = {"images": step, "milliseconds": 1e3 * min(seconds[1:]), "bytes_to_device": brought}
    return left | {"bytes_on_device": pixels.on_device.bytes_held}


def measure(paths: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Both sides on the same files."""
    source = Source("files", ("a",), {"train": split([(path, 0, 0) for path in paths])})
    if args.decode == "reduced":
        source = source.with_smaller("train", 2 * args.size)
    preprocess = Preprocess(args.size, (0.0,) * 3, (1.0,) * 3)
    pixels = Pixels(source, preprocess, "crop", args.device)
    mine = rates(args.epochs, len(paths), ours(pixels, len(paths)))
    theirs = rates(args.epochs, len(paths), plain(paths, args.size, args.workers))
    return {
        "files": len(paths),
        "bytes_a_file": sum(path.stat().st_size for path in paths) // len(paths),
        "pfedmma_images_per_second": mine,
        "dataloader_images_per_second": theirs,
        "decoded_megabytes_held": pixels.decoded.bytes_held / 1e6,
        "peak_memory_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "resident": resident(Pixels(source, preprocess, "crop", torch.device("cpu")), len(paths), args.step),
    }


def all_files(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is measured of the files below ``--root``, or of those drawn for each data set, one after another."""
    if args.root:
        paths = sorted(p for p in args.root.rglob("*") if p.suffix.lower() in SUFFIXES)[: args.most]
        if not paths:
            raise UserError(f"--root: there is no image below {args.root}")
        yield "files", measure(paths, args)
        return
    for name in args.drawn.split(","):
        with tempfile.TemporaryDirectory(prefix="pfedmma-input-") as folder:
            yield name, measure(write_pictures(Path(folder), name, args.most), args)


def table(found: dict[str, dict[str, Any]], size: int) -> Table:
    out = Table(title=f"files to {size} px, images/s")
    for name in ("", "files", "epoch", "pfedmma", "DataLoader + PIL", "ratio", "host ms a resident step"):
        out.add_column(name, justify="left" if not name else "right")
    for name, record in found.items():
        sides = zip(record["pfedmma_images_per_second"], record["dataloader_images_per_second"], strict=True)
        host = f"{record['resident']['milliseconds']:.1f}"
        for epoch, (a, b) in enumerate(sides, start=1):
            out.add_row(name, str(record["files"]), str(epoch), f"{a:.0f}", f"{b:.0f}", f"{a / b:.2f}", host)
    return out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = parser.add_mutually_exclusive_group(required=True)
    files.add_argument("--root", type=Path, help="a folder of images")
    files.add_argument("--drawn", help="data sets whose usual sizes are drawn")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--decode", choices=("full", "reduced"), default="full", help="as data.decode")
    parser.add_argument("--step", type=int, default=320, help="images of a step, once all rest on a GPU")
    parser.add_argument("--most", type=int, default=1000, help="images at most; as many are drawn")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    args = parser.parse_args()
    require_at_least(args, size=1, workers=0, epochs=1, most=1, step=1)
    args.device = device_from(args.device)
    return args


def main() -> None:
    args = arguments()
    found = dict(all_files(args))
    show(table(found, args.size))
    report = {
        "benchmark": "input",
        "date": datetime.date.today().isoformat(),
        **machine(args.device, "torchvision"),
        "size": args.size,
        "workers": args.workers,
        "decode": args.decode,
        "files": found,
    }
    publish(report, args.json)


if __name__ == "__main__":
    run_main(main)
