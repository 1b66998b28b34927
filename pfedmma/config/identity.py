"""Which settings make a run another run."""

from __future__ import annotations

from pfedmma.config.schema import Config
from pfedmma.methods import registry
from pfedmma.system.errors import UserError
from pfedmma.system.options import flatten

# How the work is laid out in memory, which no result depends on.
HOUSEKEEPING = ("federation.clients_per_pass", "federation.stems_gb", "federation.device_gb", "federation.host_gb")


# What may change between the parts of one run without making it another run.
FREE_ON_RESUME = (
    "federation.rounds", *HOUSEKEEPING, "evaluation.", "checkpoint.",
    "distributed.", "data.root", "data.cache_gb", "data.download", "backbone.allow_torchscript",
)  # fmt: skip


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
