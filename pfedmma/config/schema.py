"""All settings of a run: defaults < the method's own defaults < YAML files < ``key=value`` on the command line.

Each part of the system owns the dataclass of its section; here they are put together, read, and written back as YAML.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pfedmma.accuracy.evaluator import EvaluationConfig
from pfedmma.clip.loading import BackboneConfig
from pfedmma.comm.world import DistributedConfig
from pfedmma.config import plugins, shipped
from pfedmma.data.loading import DataConfig
from pfedmma.engine.federation import FederationConfig
from pfedmma.engine.local_settings import LocalConfig
from pfedmma.methods.registry import MethodConfig, entry_of
from pfedmma.records import trackers
from pfedmma.records.checkpoint.write import CheckpointConfig
from pfedmma.server.privacy import PrivacyConfig
from pfedmma.server.settings import ServerConfig
from pfedmma.stack.optim import OptimizerConfig
from pfedmma.system import checks
from pfedmma.system.errors import UserError
from pfedmma.system.files import expanded
from pfedmma.system.options import (
    OUTSIDE,
    SAME_RESULT,
    Raw,
    converted,
    done_earlier,
    dotted,
    flatten,
    insert,
    merged,
    nested,
    read_settings,
    section,
    setting,
    shown,
)


@dataclass(frozen=True)
class Config:
    """A run: its seed, where it lies and who follows it, and a section for each part."""

    seed: int = setting(0, "seed of every random draw")
    run_dir: str = setting("", "folder that the run writes; empty: runs/<data>-<method>-seed<seed>", OUTSIDE)
    resume: str = setting(
        "",
        "empty (a new run), auto (go on from the newest good checkpoint of run_dir, or start), or the folder of a run to go on with",
        OUTSIDE,
    )
    trackers: tuple[str, ...] = setting((), "who else is told of every round: a list of tensorboard, wandb, mlflow", OUTSIDE)
    plugins: tuple[str, ...] = setting((), "files or modules of your own that register methods, a list such as [mine.py]", SAME_RESULT)
    plugin_hashes: tuple[str, ...] = setting((), "SHA-256 of each plugin; the run fills it in")
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        for name in self.trackers:
            checks.one_of("trackers", name, trackers.NAMES)


def load(file: str | Path | Sequence[str | Path] | None = None, overrides: Sequence[str] = ()) -> Config:
    """Defaults < the method's own defaults < ``file``, or several of them in order < ``overrides`` ("section.key=value").

    Args:
        file: paths, or names of files that come with the package (`pfedmma.config.shipped`).

    Raises:
        UserError: unreadable file, unknown key (names the nearest one), value of the wrong type or out of range.
    """
    tree: dict[str, Any] = {}
    for path in [file] if isinstance(file, (str, Path)) else file or ():
        tree = merged(tree, read_settings(shipped.located(path)))
    return resolve(tree, overrides)


def load_run(folder: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The settings of the run in ``folder``, and ``overrides`` on top; it lies where it is found, whatever it says itself.

    What its version had no setting for, it did as that version did.
    """
    tree, here = read_settings(expanded(folder) / "config.yaml"), [*overrides, f"run_dir={folder}"]
    return resolve(merged(dotted(done_earlier(Config, flatten(resolve(tree, here)))), tree), here)


def resolve(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """As `load`, from nested plain values instead of a file."""
    tree = copy.deepcopy(tree)
    for item in overrides:
        name, equals, raw = item.partition("=")
        if not equals:
            raise UserError(f"'{shown(item)}' is no setting; write key=value, for example federation.rounds=10")
        insert(tree, name.strip(), Raw(raw))
    tree |= _plugins(tree)
    config = section(Config, tree)
    if own := entry_of(config.method.name).optimizer:
        config = section(Config, merged({"optimizer": dict(own)}, tree))
    if config.run_dir:
        return config
    return dataclasses.replace(config, run_dir=f"runs/{config.data.name}-{config.method.name}-seed{config.seed}")


def _plugins(tree: dict[str, Any]) -> dict[str, Any]:
    """Import the plugins that the settings name, before anything is read that they may register; how the settings name them then."""
    names, hashes = (converted(tree.get(name, ()), tuple[str, ...], name) for name in ("plugins", "plugin_hashes"))
    found = plugins.load(names, hashes, converted(tree.get("run_dir", ""), str, "run_dir"))
    return {"plugins": found.names, "plugin_hashes": found.hashes} if names or hashes else {}


def dump(config: Config) -> str:
    """The resolved configuration as YAML that `load` reads back to the same value."""
    return yaml.safe_dump(nested(config), sort_keys=False)
