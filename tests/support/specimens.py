"""A good file of each kind that someone else may have written, and what reads it: for the tests of damaged ones and for fuzzing."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

import pfedmma
from pfedmma.clip import fitting, weights
from pfedmma.comm.world import World
from pfedmma.compare import grid
from pfedmma.config import schema as configuration
from pfedmma.data.loading import DataConfig, divide
from pfedmma.data.partition import partition_file
from pfedmma.data.pixels.decode import decode
from pfedmma.data.sources import coop, coop_splits, lists
from pfedmma.data.sources.base import Source, Split
from pfedmma.engine.cohort import Members
from pfedmma.methods.adapters.multimodal import AdapterSpec
from pfedmma.portable import adapter_file, client_file
from pfedmma.records.checkpoint import manifest, write
from pfedmma.records.checkpoint import read as checkpoint_read
from pfedmma.records.folder import RunFolder
from pfedmma.run import resume
from pfedmma.server.rules import ServerRules
from pfedmma.server.server import Server
from pfedmma.stack.client_state import ClientStates
from pfedmma.stack.layout import Layout
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.stack.start import Start
from pfedmma.system.errors import UserError
from pfedmma.system.files import to_json
from tests.support import reported

ALONE = World(0, 1, torch.device("cpu"))
CLIENT = 3  # of the checkpoint
VISION = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 2}


@dataclass(frozen=True)
class Specimen:
    """``good`` is the content of a file that ``read`` takes; ``read(folder, content)`` puts content there and reads it."""

    good: Callable[[], bytes]
    read: Callable[[Path, bytes], Any]

    def outcome(self, folder: Path, content: bytes) -> str:
        """What comes of it: "read", or "refused: " and what the user is told; any other exception is a fault."""
        try:
            self.read(folder, content)
        except UserError as error:
            return f"refused: {error}"
        return "read"


# Models.


@cache
def clip() -> nn.Module:
    """A CLIP of two blocks a tower."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.CLIP(embed_dim=8, vision_cfg=VISION, text_cfg=TEXT).eval().requires_grad_(False)


def adapter_spec(**changes: Any) -> AdapterSpec:
    return AdapterSpec(**({"pairs": ((1, 1), (2, 2)), "visual_width": 16, "text_width": 8, "dim": 4} | changes))


def tensors_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=gen) for name, shape in shapes.items()}


def adapter_metadata(**changes: str) -> dict[str, str]:
    said = {"format": adapter_file.FORMAT, "dim": "4", "scale": "0.1", "activation": "relu", "rescale": "true", "backbone": "mine"}
    return said | changes


def good_adapter() -> bytes:
    return save(tensors_of(adapter_spec().shapes()), adapter_metadata())


def read_adapter(folder: Path, content: bytes) -> None:
    model = pfedmma.load_adapter(clip(), put(folder / "adapter.safetensors", content))
    assert model.encode_image(torch.zeros(1, 3, 16, 16)).shape == (1, 8)


def client_metadata(**changes: str) -> dict[str, str]:
    settings = {"name": "promptfl", "promptfl": {"context": 2}}
    said = {"format": client_file.FORMAT, "method": json.dumps(settings), "backbone": "mine", "template": "a photo of a {}."}
    return said | changes


def good_client() -> bytes:
    return save(tensors_of({"prompt": (2, 8)}), client_metadata())


def read_client(folder: Path, content: bytes) -> None:
    model = client_file.load_client(clip(), put(folder / "client.safetensors", content))
    assert model.classifier(("cat", "dog"))(torch.zeros(1, 3, 16, 16)).shape == (1, 2)


def good_weights() -> bytes:
    return save(dict(clip().state_dict()))


def read_weights(folder: Path, content: bytes, name: str = "weights.pt") -> None:
    """As `pfedmma.clip.loading.create_model` does, which makes a sentence of any exception."""
    try:
        fitting.put(fresh_clip(), weights.read(str(put(folder / name, content)), False).tensors, "the model")
    except Exception as error:
        raise UserError(str(error)[:300]) from error


@cache
def fresh_clip() -> nn.Module:
    """Another one, to put weights into."""
    return open_clip.CLIP(embed_dim=8, vision_cfg=VISION, text_cfg=TEXT).eval().requires_grad_(False)


def good_torch_weights() -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in clip().state_dict().items()}, "epoch": 3}, buffer)
    return buffer.getvalue()


# Checkpoints.

SHAPES = {"shared.1.weight": (3, 3), "shared.1.bias": (3,), "prompt": (2,), "own": (5,)}
EXCHANGE = {"shared.1.weight": "mean", "shared.1.bias": "mean", "prompt": "pool"}
PROGRESS: dict[str, Any] = {
    "config": {"seed": 0, "data.clients": 4},
    "ledger": {
        "total": {"exchange": {"collectives": 1, "payload_bytes": 48, "seconds": 0.5}},
        "uplink_bytes": 48,
        "downlink_bytes": 48,
        "ring_bytes_per_rank": 0.0,
        "exchange_us": [12.5],
    },
    "zero_shot": {"local": 10.0, "hm": None},
    "zero_shot_clients": base64.b64encode(struct.pack("<16d", *range(16))).decode(),
    "classes": {"base": ["cat", "dog"], "novel": ["fish"], "held": base64.b64encode(bytes([0b01101101])).decode()},
    "answers": "server",
    "reads": 2,
    "template": "a photo of a {}.",
}


def write_checkpoint(root: Path) -> Path:
    """A checkpoint of round 2 in which client 3 has something of its own, and reads what client 1 has sent; its folder."""
    states, server = new_members()
    states.own[CLIENT] = torch.ones(5)
    server.pool.rows = {1: torch.ones(2), CLIENT: torch.zeros(2)}
    server.pool.before, server.pool.received = {1: torch.zeros(2)}, {CLIENT: torch.ones(2)}
    write.save_checkpoint(root, write.Snapshot(2, states, server.state_dict(), manifest.Progress.from_json(PROGRESS)), ALONE, keep=1)
    return manifest.folder_of(root, 2)


def new_members() -> Members:
    """Of the run that wrote the checkpoint, at its start."""
    layout = Layout(SHAPES, EXCHANGE)
    initial = torch.arange(layout.size, dtype=torch.float32)
    server = Server(layout, {"shared": initial[: layout.exchanged_size]}, ALONE, ServerRules(reads=PROGRESS["reads"]))
    return Members(ClientStates(layout, Start(initial), OptimizerConfig(), torch.device("cpu")), server)


def take(root: Path, found: manifest.Manifest) -> None:
    """What a checkpoint is read for: an exported client, and a run that goes on."""
    checkpoint_read.client_answer(root, found, CLIENT)
    resume.fill(new_members(), root, found, {CLIENT})


def good_manifest(folder: Path | None = None) -> bytes:
    with checkpoint_folder(folder) as (written, _):
        tree = json.loads((written / "manifest.json").read_text())
    del tree["digest"]
    return json.dumps(tree).encode()


def good_server(folder: Path | None = None) -> bytes:
    with checkpoint_folder(folder) as (written, _):
        return (written / manifest.SERVER_FILE).read_bytes()


def good_shard(folder: Path | None = None) -> bytes:
    with checkpoint_folder(folder) as (written, _):
        return (written / "clients-00000-00000.safetensors").read_bytes()


class checkpoint_folder:
    """A fresh checkpoint in ``folder`` or a temporary one."""

    def __init__(self, folder: Path | None = None) -> None:
        import tempfile

        self.kept = None if folder else tempfile.TemporaryDirectory()
        self.root = folder or Path(self.kept.name)  # type: ignore[union-attr]

    def __enter__(self) -> tuple[Path, Path]:
        return write_checkpoint(self.root), self.root

    def __exit__(self, *_: object) -> None:
        if self.kept:
            self.kept.cleanup()


def read_manifest(folder: Path, content: bytes) -> None:
    """With a digest that is right, as its author can give it one."""
    root = folder / "checkpoints"
    written = manifest.folder_of(root, 2) if root.exists() else write_checkpoint(root)
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        content = with_digest(json.loads(content))
    put(written / "manifest.json", content)
    found = checkpoint_read.newest_good(root)
    if found is None:
        raise UserError("damaged")
    take(root, found)
    if found.progress.classes is not None:
        found.progress.classes.of_client(CLIENT)
    ALONE.ledger.restore(found.progress.ledger)
    ALONE.ledger.totals()


def with_digest(tree: dict[str, Any]) -> bytes:
    """A manifest with the digest that is right for it."""
    return to_json(tree | {"digest": manifest._digest({name: value for name, value in tree.items() if name != "digest"})}).encode()


def read_shard(folder: Path, content: bytes, name: str = "clients-00000-00000.safetensors") -> None:
    """With the hash in the manifest that it has."""
    root = folder / "shards"
    written = manifest.folder_of(root, 2) if root.exists() else write_checkpoint(root)
    shard = put(written / name, content)
    tree = json.loads((written / "manifest.json").read_text())
    tree["shards"][shard.name] = manifest.sha256(shard)
    (written / "manifest.json").write_bytes(with_digest(tree))
    found = checkpoint_read.newest_good(root)
    if found is None and name == manifest.SERVER_FILE:  # it has to have room for the layout
        raise UserError("damaged")
    assert found is not None
    take(root, found)


# Data.


def _no_pixels(index: int) -> Tensor:
    raise AssertionError("nothing is decoded here")


@cache
def source() -> Source:
    names = tuple(f"c{i}" for i in range(6))
    parts = {"train": 4, "val": 1, "test": 2}
    return Source("toy", names, {name: Split(torch.arange(6).repeat(n), _no_pixels) for name, n in parts.items()})


def good_partition() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        federation = divide(source(), DataConfig(clients=3, shots=2), 0, "test")
        partition_file.write(Path(folder) / "who.json", federation, source())
        return (Path(folder) / "who.json").read_bytes()


def read_partition(folder: Path, content: bytes) -> None:
    partition_file.read(put(folder / "who.json", content), source())


def good_split() -> bytes:
    parts = ("train", "val", "test")
    return json.dumps({part: [[f"{name}/{part}.jpg", n, name] for n, name in enumerate(("cat", "dog"))] for part in parts}).encode()


def read_split(folder: Path, content: bytes) -> None:
    images = folder / "caltech-101" / "101_ObjectCategories"
    if not images.exists():
        for name in ("cat", "dog"):
            (images / name).mkdir(parents=True)
            for part in ("train", "val", "test"):
                (images / name / f"{part}.jpg").touch()
    put(folder / "caltech-101" / "split_zhou_Caltech101.json", content)
    coop.load("caltech101", str(folder))


def good_list() -> bytes:
    return b"Abyssinian_100 1 1 1\nBengal_7 2 1 2\n"


def read_list(folder: Path, content: bytes) -> None:
    """As every list there is; that the images are missing is no news."""
    for name in ("annotations/trainval.txt", "annotations/test.txt", "ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt"):
        put(folder / name, content)
    for name in ("ucfTrainTestlist/testlist01.txt", "ClassName.txt", "Training_01.txt", "Testing_01.txt", "variants.txt", "classnames.txt"):
        put(folder / name, content)
    for name in ("images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt"):
        put(folder / name, content)
    for domain in lists.DOMAINNET:
        for part in ("train", "test"):
            put(folder / f"{domain}_{part}.txt", content)
    root = str(folder)
    readers: list[Callable[[], Any]] = [partial(rule, folder, 0) for rule in (coop_splits.pets, coop_splits.ucf101, coop_splits.sun397)]
    readers += [partial(lists.aircraft, root), partial(lists.imagenet, root), partial(lists.domainnet, root, True)]
    said = []
    for reader in readers:
        try:
            reader()
        except UserError as error:
            said.append(error)
    if len(said) == len(readers):
        raise said[0]


def good_image() -> bytes:
    import io

    buffer = io.BytesIO()
    Image.effect_noise((24, 18), 50).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def read_image(folder: Path, content: bytes) -> None:
    decode(put(folder / "image", content))


# Settings and runs.


def good_config() -> bytes:
    return configuration.dump(configuration.Config(run_dir="runs/x")).encode()


def read_config(folder: Path, content: bytes) -> None:
    config = configuration.load(put(folder / "config.yaml", content))
    put(folder / "again.yaml", configuration.dump(config).encode())
    assert configuration.load(folder / "again.yaml") == config


def read_setting(folder: Path, content: bytes) -> None:
    configuration.load(None, [content.decode(errors="surrogateescape")])


def good_comparison() -> bytes:
    methods = b"methods: {a: {method.name: local}, pfedmma: }\n"
    return b"settings: {data: {clients: 2}, optimizer.lr: 0.1}\n" + methods + b"shots: [4, 8]\nseeds: [0, 1]\n"


def read_comparison(folder: Path, content: bytes) -> None:
    grid.read(put(folder / "compare.yaml", content))


def good_metrics() -> bytes:
    return b"".join(to_json(reported.round_(n, 2, None)).encode() + b"\n" for n in (1, 2, 3))


def read_metrics(folder: Path, content: bytes) -> None:
    run = RunFolder(folder)
    put(run.metrics, content)
    run.keep_rounds(2)
    assert all(row.round <= 2 for row in run.read_metrics())


def good_summary() -> bytes:
    return to_json(reported.summary(clients=1)).encode()


def read_summary(folder: Path, content: bytes) -> None:
    put(folder / "config.yaml", b"seed: 0\n")
    put(folder / "summary.json", content)
    RunFolder(folder).read_summary()


SPECIMENS = {
    "adapter": Specimen(good_adapter, read_adapter),
    "client": Specimen(good_client, read_client),
    "weights": Specimen(good_weights, partial(read_weights, name="weights.safetensors")),
    "torch weights": Specimen(good_torch_weights, read_weights),
    "manifest": Specimen(good_manifest, read_manifest),
    "shard": Specimen(good_shard, read_shard),
    "server": Specimen(good_server, partial(read_shard, name=manifest.SERVER_FILE)),
    "partition": Specimen(good_partition, read_partition),
    "split": Specimen(good_split, read_split),
    "list": Specimen(good_list, read_list),
    "image": Specimen(good_image, read_image),
    "config": Specimen(good_config, read_config),
    "setting": Specimen(lambda: b"federation.rounds=3", read_setting),
    "comparison": Specimen(good_comparison, read_comparison),
    "metrics": Specimen(good_metrics, read_metrics),
    "summary": Specimen(good_summary, read_summary),
}


def _with_header(name: str) -> Specimen:
    """The same file, of which the content is the header alone; its length and the numbers that follow are right."""

    def good() -> bytes:
        return json.dumps(unpacked(SPECIMENS[name].good())[0]).encode()

    @cache
    def rest() -> bytes:
        return unpacked(SPECIMENS[name].good())[1]

    def read(folder: Path, content: bytes) -> None:
        SPECIMENS[name].read(folder, struct.pack("<Q", len(content)) + content + rest())

    return Specimen(good, read)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def unpacked(content: bytes) -> tuple[Any, bytes]:
    """(header, rest) of a safetensors file."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def packed(header: Any, rest: bytes) -> bytes:
    """The inverse of `unpacked`."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


SPECIMENS |= {f"{name} header": _with_header(name) for name in ("adapter", "client", "shard", "server")}
