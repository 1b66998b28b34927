"""Wiring: from a configuration to the parts of a run, for training and for everything that reads a run afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from pfedmma import rng
from pfedmma.accuracy.evaluator import Evaluator
from pfedmma.accuracy.zero_shot import Reference
from pfedmma.clip import backbone as clip
from pfedmma.clip.stems import StemCache
from pfedmma.comm.world import World
from pfedmma.config.schema import Config, flatten
from pfedmma.config.schema import load as load_config
from pfedmma.data import loading
from pfedmma.data.partition.federated import Federation
from pfedmma.data.pixels.shared import leave_out_unreadable, make_test_images, share_test_images
from pfedmma.engine.cohort import LocalWork, PassWidth, Trainer
from pfedmma.engine.rounds import Engine
from pfedmma.methods import registry
from pfedmma.methods.base import Method
from pfedmma.methods.zeroshot import ZeroShot
from pfedmma.records.checkpoint import manifest as checkpoint_manifest
from pfedmma.records.folder import RunFolder
from pfedmma.stack.client_state import ClientStore
from pfedmma.stack.linear import Layout
from pfedmma.stack.offload import Budget
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.system.errors import UserError
from pfedmma.system.memory import keep_freed_memory
from pfedmma.system.signals import Interruption

# How the work is laid out in memory, which no result depends on.
HOUSEKEEPING = ("federation.clients_per_pass", "federation.stems_gb", "federation.device_gb", "federation.host_gb")
MOST_TESTED_AT_ONCE = 32  # clients of one pass in evaluation; more share no further work
# What may change between the parts of one run without making it another run.
FREE_ON_RESUME = (
    "federation.rounds", *HOUSEKEEPING, "evaluation.", "checkpoint.",
    "distributed.", "data.root", "data.cache_gb", "data.download", "backbone.allow_torchscript",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """The assembled parts of a run on one rank."""

    config: Config
    backbone: clip.Backbone
    federation: Federation
    engine: Engine
    skipped_images: int = 0  # unreadable ones that were left out

    def zero_shot(self) -> Reference:
        """The accuracy of CLIP as it comes on the same protocol. All ranks enter."""
        method = ZeroShot(self.backbone)
        store = new_store(method, self.config.optimizer, self.config.seed, self.engine.world)
        table = self.engine.evaluate_all(method, store)
        return Reference(self.engine.summarise(table), table)


def assemble(config: Config, world: World, interruption: Interruption | None = None) -> Run:
    """Build backbone, data, method and engine; ``interruption``, where there may be one, ends its rounds.

    Raises:
        UserError: anything in ``config`` that cannot be had here.
    """
    if world.device.type == "cpu":
        keep_freed_memory()
    backbone = clip.load(config.backbone, config.seed, world.device)
    federation, pixels = loading.load(config.data, config.seed, config.evaluation.split, backbone.preprocess, world.device)
    share_test_images(federation, pixels, world, config.run_dir)
    skipped = 0
    if config.data.on_bad_image == "skip":
        federation, skipped = leave_out_unreadable(federation, pixels, world, [c for c in federation.clients if world.hosts(c.id)])
    if config.evaluation.every and world.local_size > 1:
        make_test_images(federation, pixels, world)
    method = registry.build(config.method, backbone)
    budget = Budget(config.federation.device_gb * 1e9, config.federation.host_gb * 1e9)
    store = new_store(method, config.optimizer, config.seed, world, budget)
    work = LocalWork(config.federation.local_epochs, config.federation.batch_size, config.optimizer, config.seed)
    with backbone.autocast():
        text_stem = method.text_stem(backbone.prompts(federation.template, federation.base.classes))
    trainer = Trainer(backbone, method, store.layout, pixels, text_stem, work, StemCache(config.federation.stems_gb * 1e9))
    width = PassWidth.of(config.federation.clients_per_pass, world.device)
    evaluator = Evaluator(backbone, federation, pixels, config.evaluation.batch_size, min(width.now, MOST_TESTED_AT_ONCE))
    engine = Engine(
        world,
        federation.clients,
        trainer,
        evaluator,
        store,
        config.federation,
        config.evaluation,
        config.seed,
        config.distributed.wire,
        width,
        interruption or Interruption(),
    )
    return Run(config, backbone, federation, engine, skipped)


def new_store(method: Method, optimizer: OptimizerConfig, seed: int, world: World, budget: Budget | None = None) -> ClientStore:
    """The state in which every client of the method starts."""
    layout = Layout(method.shapes, method.exchange)
    return ClientStore(layout, layout.pack(method.initial(rng.generator(seed, "init"))), optimizer, world.device, budget)


def restore(run: Run, folder: RunFolder) -> dict | None:
    """Load the newest good checkpoint into ``run``; its manifest, or None where there is none. All ranks enter.

    Raises:
        UserError: the checkpoint belongs to another configuration; names the keys that differ.
    """
    found = checkpoint_manifest.newest_good(folder.checkpoints, run.engine.world)
    if found is None:
        if folder.config.exists():  # it ended before its first checkpoint: begin again, but only the same run
            refuse_other_config(run.config, comparable(load_config(folder.config)))
        return None
    round_, manifest = found
    refuse_other_config(run.config, manifest["progress"]["config"])
    hosted = run.engine.hosted(range(len(run.engine.clients)))
    checkpoint_manifest.restore(
        checkpoint_manifest.folder_of(folder.checkpoints, round_), manifest, run.engine.store, [c.id for c in hosted]
    )
    run.engine.world.ledger.restore(manifest["progress"]["ledger"])
    return manifest


def refuse_other_config(config: Config, saved: dict) -> None:
    """Raise a `UserError` if ``saved`` (flat) differs from ``config`` in anything that makes it another run."""
    wanted = comparable(config)
    different = [name for name in wanted if wanted[name] != saved.get(name)]
    if different:
        changes = ", ".join(f"{name} (was {saved.get(name)}, is {wanted[name]})" for name in different)
        raise UserError(f"resume: the run in {config.run_dir} is of another configuration: {changes}")


def comparable(config: Config) -> dict:
    """The settings that identify a run, as JSON keeps them."""
    return {name: value for name, value in settings(config).items() if not name.startswith(FREE_ON_RESUME)}


def settings(config: Config) -> dict:
    """All settings {"federation.rounds": 50, ...} as JSON keeps them.

    But for where the run lies and is followed, and methods that do not take part.
    """
    left_out = ("run_dir", "resume", "trackers", *(f"method.{name}." for name in registry.OTHERS if name != config.method.name))
    return {name: list(v) if isinstance(v, tuple) else v for name, v in flatten(config).items() if not name.startswith(left_out)}
