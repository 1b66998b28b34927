"""pfedmma: personalized federated fine-tuning of CLIP with multi-modal adapters, on torch.distributed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pfedmma.version import VERSION

if TYPE_CHECKING:  # what is loaded when it is asked for
    from pfedmma.api import compare as compare
    from pfedmma.api import load_run as load_run
    from pfedmma.api import run as run
    from pfedmma.portable.adapted_clip import load_adapter as load_adapter
    from pfedmma.portable.adapted_clip import save_adapter as save_adapter
    from pfedmma.portable.client_file import load_client as load_client

__version__ = VERSION
__all__ = ["compare", "load_adapter", "load_client", "load_run", "run", "save_adapter"]
_HOMES = {
    "load_adapter": "portable.adapted_clip",
    "save_adapter": "portable.adapted_clip",
    "load_client": "portable.client_file",
    "load_run": "api",
}


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `import pfedmma` stays light, and the commands start faster.
    if name in _HOMES:
        return getattr(importlib.import_module(f"pfedmma.{_HOMES[name]}"), name)
    if name in __all__:  # a room that can be called, see `pfedmma.system.lazy.Called`
        return importlib.import_module(f"pfedmma.{name}")
    raise AttributeError(f"module 'pfedmma' has no attribute '{name}'")
