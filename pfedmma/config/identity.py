"""What another value of a setting makes of a run: another run, the same one that goes on, or one with the same results.

Each setting says so beside its field (`pfedmma.system.options.setting`); nothing is listed here.
"""

from __future__ import annotations

from typing import Any

from pfedmma.config.schema import Config
from pfedmma.system.errors import UserError
from pfedmma.system.options import ANOTHER_RUN, OUTSIDE, SAME_RESULT, described, done_earlier, flatten, plain


def change_of() -> dict[str, str]:
    """{"federation.rounds": `GOES_ON`, ...} for all settings; see `pfedmma.system.options.CHANGES`."""
    return {item.name: item.change for item in described(Config)}


def settings(config: Config) -> dict[str, Any]:
    """The settings {"federation.rounds": 50, ...} of the run itself, as JSON keeps them; methods that do not take part are left out."""
    change = change_of()
    return {name: plain(value) for name, value in flatten(config).items() if change[name] != OUTSIDE}


def comparable(config: Config) -> dict[str, Any]:
    """The settings that identify a run: another value of one of them is another run."""
    change = change_of()
    return {name: value for name, value in settings(config).items() if change[name] == ANOTHER_RUN}


def relevant(flat: dict[str, Any]) -> dict[str, Any]:
    """Of settings as `settings` gives them, of this version or an earlier one, those that a result depends on, fit to be compared.

    A name that is no setting of this version is kept.
    """
    change = change_of()
    return {name: _same(value) for name, value in _completed(flat).items() if change.get(name) not in (SAME_RESULT, OUTSIDE)}


def refuse_other_config(config: Config, saved: dict[str, Any]) -> None:
    """Raise a `UserError` if ``saved`` (flat) differs from ``config`` in anything that makes it another run."""
    wanted, known = comparable(config), _completed(saved)
    different = [name for name in wanted if _same(wanted[name]) != _same(known[name])]
    if different:
        changes = ", ".join(f"{name} (was {known[name]}, is {wanted[name]})" for name in different)
        raise UserError(f"resume: the run in {config.run_dir} is of another configuration: {changes}")


def _completed(flat: dict[str, Any]) -> dict[str, Any]:
    """With the settings that are missing: what an earlier version had no setting for, it did as the setting says, or its default."""
    defaults = {item.name: plain(item.default) for item in described(Config)}
    return defaults | done_earlier(Config, defaults | flat) | flat


def _same(value: Any) -> Any:
    """A list as the text that it may have been in an earlier version: parts joined by "+"."""
    return "+".join(map(str, value)) if isinstance(value, list) else value
