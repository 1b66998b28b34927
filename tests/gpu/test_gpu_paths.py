"""What runs differently on a GPU ends as it does on the CPU: precisions, stacks, crops, places of client state, too little memory."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from pfedmma import rng
from pfedmma.clip.preprocess import Preprocess
from pfedmma.comm.world import World
from pfedmma.config import schema as configuration
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import Source, Split
from pfedmma.engine.batches import Batch, Stack
from pfedmma.engine.cohort import PassWidth, train_cohort
from pfedmma.engine.rounds import Engine
from pfedmma.records.rows import RoundRow
from pfedmma.run.assembly import assemble
from pfedmma.stack.offload import Budget
from pfedmma.stack.optim import LossScale
from pfedmma.system.staging import Staging
from tests.support import small
from tests.support.stacks import gathered, new_clients, new_members, new_training, serve, strong_adapters

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
PLAIN = "backbone.compile=off"  # compiling takes a minute of a run


@pytest.fixture(autouse=True)
def exact_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in whole fp32; the default rounds their inputs to 10 bits, which would hide what these tests compare."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    small.few_images(monkeypatch, train=16, test=2)


@pytest.fixture(scope="module")
def gpu_clip(tiny_clip: Any) -> Any:
    return copy.deepcopy(tiny_clip).to(GPU)


def assert_near(got: Tensor, wanted: Tensor, start: Tensor, tolerance: float) -> None:
    """Each row went from ``start`` the way that ``wanted`` went, up to ``tolerance`` of its length."""
    got, wanted, start = got.cpu(), wanted.cpu(), start.cpu()
    way = (wanted - start).norm(dim=1)
    assert (way > 0).all()
    assert ((got - wanted).norm(dim=1) / way).max() < tolerance


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 0.03), ("bf16", 0.2)])
def test_a_step_is_near_the_cpu_in_fp32(tiny_clip: Any, gpu_clip: Any, precision: str, tolerance: float) -> None:
    """The same pixels on both sides."""
    ends, losses = [], []
    host = strong_adapters(tiny_clip)
    clients, batches = [new_clients()[i] for i in (3, 4)], new_training(host, augment="crop").batches
    batch = batches.on_device(clients, batches.stage(Stack(clients, 1), [torch.arange(4), torch.arange(3)], 0))
    for method in (host, strong_adapters(gpu_clip, precision)):
        device, members = method.backbone.device, new_members(method)
        params, state = gathered(members, [3, 4]), members.states.gather_optimizer([3, 4])
        there = Batch(*(tensor.to(device) for tensor in (batch.images, batch.labels, batch.weights, batch.seeds)))
        scale = LossScale(2, device, enabled=precision == "fp16")
        losses.append(new_training(method).step(params, state, {}, there, scale).cpu())
        ends.append(params)
    torch.testing.assert_close(losses[1], losses[0], rtol=tolerance, atol=0.0)
    assert_near(ends[1], ends[0], gathered(new_members(host), [3, 4]), tolerance)


@pytest.mark.parametrize("clients_per_pass", [2, 5])
def test_a_stacked_client_is_the_client_alone(gpu_clip: Any, clients_per_pass: int) -> None:
    method, clients = strong_adapters(gpu_clip), new_clients()
    training = new_training(method, augment="crop")
    ends = []
    for width in (1, clients_per_pass):
        members = new_members(method)
        start = gathered(members)
        for round_ in (1, 2):
            trained = train_cohort(training, clients, members, round_, PassWidth(width))
            serve(members, trained.uploads.mean(dim=0))
        assert trained.uploads.device.type == trained.losses.device.type == GPU.type
        ends.append((gathered(members), trained.losses))
    torch.testing.assert_close(ends[1][1], ends[0][1], rtol=1e-4, atol=0.0)
    assert_near(ends[1][0], ends[0][0], start, 1e-3)


@pytest.mark.parametrize("budget", [0.0, 2e5, 1e9])
def test_crops_on_the_device_are_those_of_the_host(budget: float) -> None:
    """Of images that are brought for a step, or rest on the device from the first time on, or some of each."""
    gen = rng.generator(0, "pictures")
    sizes = torch.randint(40, 300, (24, 2), generator=gen).tolist()
    pictures = [tv.resize(torch.randint(256, (3, 12, 12), generator=gen).to(torch.uint8), size, antialias=True) for size in sizes]
    source = Source("smooth", ("a",), {"train": Split(torch.zeros(24, dtype=torch.long), pictures.__getitem__)})
    preprocess = Preprocess(224, (0.5,) * 3, (0.25,) * 3)
    host, device = (Pixels(source, preprocess, "crop", where, Budget(budget, 1e9)) for where in (CPU, GPU))
    for step in range(2):
        wanted, got = (pixels.training(torch.arange(24), rng.generator(step, "crops")).cpu() for pixels in (host, device))
        difference = (got.int() - wanted.int()).abs()
        assert difference.max() <= 2 and difference.float().mean() < 0.05
    places = device.bytes_by_place()
    assert places["cuda"] <= max(budget, 1 << 26) and (places["cpu"] > 0) == (budget < 1e9)


def test_test_images_on_the_device_are_those_of_the_host() -> None:
    source = Source("noise", ("a",), {"train": Split(torch.zeros(4, dtype=torch.long), lambda i: torch.full((3, 9, 9), i).byte())})
    pixels = Pixels(source, Preprocess(8, (0.5,) * 3, (0.25,) * 3), "crop", GPU)
    rows = torch.tensor([2, 0, 3])
    first, again = pixels.tested("train", rows, keep=True), pixels.tested("train", rows, keep=True)
    assert again.device.type == "cuda" and torch.equal(again.cpu(), first.cpu())


def test_what_is_put_on_the_device_is_what_was_on_the_host() -> None:
    """Buffers are let go at once, and used again while the device is still busy with other work."""
    way, busy = Staging(GPU), torch.randn(4096, 4096, device=GPU)
    gen = rng.generator(0, "values")
    sent = []
    for number in range(50):
        busy = busy @ busy / 64.0
        value = (torch.randint(256, (1 << 20,), generator=gen).to(torch.uint8), torch.tensor([number]), torch.rand(7, generator=gen))
        sent.append(([part.clone() for part in value], way.put(value)))
    assert all(torch.equal(part.cpu(), own) for host, there in sent for own, part in zip(host, there, strict=True))


class Quiet:
    """Losses of a run's rounds."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def round_done(self, row: RoundRow) -> None:
        assert row.loss is not None
        self.losses.append(row.loss)

    def checkpoint_due(self, round_: int) -> bool:
        return False

    def save(self, round_: int) -> None:
        raise NotImplementedError


def run_engine(device: torch.device, *more: str, guess: int = 0) -> tuple[Engine, list[float]]:
    """A small run of all seven clients; ``guess``: how many of them a pass is tried with first, where that is not set."""
    config = configuration.load(None, [*small.settings(Path("unused")), "federation.participation=1.0", PLAIN, *more])
    engine = assemble(config, World(0, 1, device)).engine
    if guess:
        engine.width = PassWidth(guess, fits=True)
    quiet = Quiet()
    engine.run(1, quiet)
    return engine, quiet.losses


@pytest.mark.parametrize("optimizer", ["reset", "persist"])
def test_the_run_does_not_depend_on_where_the_state_rests(optimizer: str) -> None:
    """All on the GPU; in host memory; of one client in host memory and the others on disk. Fetched ahead in passes of two."""
    common = ["federation.clients_per_pass=2", "federation.rounds=3", f"optimizer.state={optimizer}"]
    wanted, losses = run_engine(GPU, *common)
    width, start = 4 * wanted.states.own.width, wanted.states.initial
    assert wanted.states.own.bytes_by_place() == {"cuda": 7 * width, "cpu": 0, "disk": 0}
    shares = 1 if optimizer == "reset" else 1 + wanted.states.optimizer_rows.width / wanted.states.own.width
    for host, held in ((1.0, 7), (1.5 * width * shares / 1e9, 1), (0.0, 0)):
        engine, other = run_engine(GPU, *common, "federation.device_gb=0", f"federation.host_gb={host}")
        assert engine.states.own.bytes_by_place() == {"cuda": 0, "cpu": held * width, "disk": (7 - held) * width}
        assert other == pytest.approx(losses, rel=1e-4)
        assert_near(gathered(engine.members, range(7)), gathered(wanted.members, range(7)), start.expand(7, -1), 1e-3)


@pytest.fixture
def limit_memory() -> Iterator[Any]:
    """A function that leaves this process so many bytes of the GPU."""

    def limit(size: float) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / torch.cuda.get_device_properties(GPU).total_memory))

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_pass_that_does_not_fit_is_halved_and_ends_equal(limit_memory: Any) -> None:
    settings = ["data.shots=16", "federation.batch_size=128", "federation.rounds=1", "data.augment=none", "federation.stems_gb=0"]
    reserved, ends = [], []
    for width in ("1", "7"):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        engine, losses = run_engine(GPU, *settings, f"federation.clients_per_pass={width}")
        reserved.append(torch.cuda.max_memory_reserved())
        ends.append((gathered(engine.members, range(7)).cpu(), losses))
        start = engine.states.initial.cpu().expand(7, -1)
        del engine
    assert reserved[1] > 1.2 * reserved[0], reserved  # or there is nothing to halve
    limit_memory(sum(reserved) / 2)
    engine, losses = run_engine(GPU, *settings, guess=7)
    assert engine.width.now < 7
    assert losses == pytest.approx(ends[1][1], rel=1e-4)
    assert_near(gathered(engine.members, range(7)), ends[1][0], start, 1e-3)


def test_evaluation_is_that_of_the_cpu() -> None:
    """With trained weights, whose answers are seldom a tie, and strong adapters of each client's own; up to one image of a test set."""
    settings = ["backbone.pretrained=auto", "federation.rounds=1", "evaluation.every=1", "federation.clients_per_pass=3"]
    tables = []
    for device in (CPU, GPU):
        engine, _ = run_engine(device, *settings)
        states = engine.states
        drawn = torch.randn(7, states.layout.size, generator=rng.generator(0, "states"))
        states.scatter(range(7), (states.initial.cpu() + 0.02 * drawn).to(device))
        serve(engine.members, states.initial[: states.layout.exchanged_size])
        engine.evaluate()
        tables.append(engine.evaluation.table)
    host, gpu = (table[:, :3] for table in tables)
    assert len({tuple(row) for row in host.tolist()}) > 1  # clients differ
    one = torch.tensor([100.0 / (6 * 2), 100.0 / (60 * 2), 100.0 / (60 * 2)], dtype=torch.float64)  # the smallest client has six classes
    assert ((gpu - host).abs() <= one + 1e-9).all()


def train_apart(*settings: str, launcher: Sequence[str] = ()) -> None:
    """A run in a process of its own, under a launcher or without."""
    outside = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    command = [sys.executable, *launcher, "-m", "pfedmma.train", PLAIN, *settings]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = outside | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_a_run_with_nccl_is_the_run_on_the_cpu(tmp_path: Path) -> None:
    """A world of one under torchrun, and the program alone."""
    launchers = {"nccl": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"], "cpu": []}
    places = {"nccl": ["distributed.device=cuda", "distributed.backend=nccl"], "cpu": ["distributed.device=cpu"]}
    for name, launcher in launchers.items():
        train_apart(*small.settings(tmp_path / name, *places[name]), launcher=launcher)
    rows, expected = small.metrics(tmp_path / "nccl"), small.metrics(tmp_path / "cpu")
    assert [row["clients"] for row in rows] == [row["clients"] for row in expected]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-3)
    tensors, wanted = small.final_tensors(tmp_path / "nccl"), small.final_tensors(tmp_path / "cpu")
    assert tensors.keys() == wanted.keys()
    for name in wanted:
        assert (tensors[name] - wanted[name]).norm() <= 1e-3 * wanted[name].norm(), name


def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit_if_it_is_asked_for(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ["distributed.device=cuda", "backbone.precision=bf16", "backbone.deterministic=true", "federation.clients_per_pass=3"]
    train_apart(*small.settings(whole, *common))
    train_apart(*small.settings(parts, *common, "federation.rounds=1"))
    train_apart(*small.settings(parts, *common, "resume=auto"))
    assert [row["loss"] for row in small.metrics(parts)] == [row["loss"] for row in small.metrics(whole)]
    tensors, wanted = small.final_tensors(parts), small.final_tensors(whole)
    assert tensors.keys() == wanted.keys() and all(torch.equal(tensors[name], wanted[name]) for name in wanted)
