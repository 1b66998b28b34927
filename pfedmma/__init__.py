"""pfedmma: personalized federated fine-tuning of CLIP with multi-modal adapters, on torch.distributed."""

from __future__ import annotations

from typing import Any

from pfedmma.version import VERSION

__version__ = VERSION
__all__ = ["load_adapter", "load_client", "save_adapter"]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: `import pfedmma` stays light, and the commands start faster.
    if name == "load_client":
        from pfedmma.portable.client_file import load_client

        return load_client
    if name in __all__:
        from pfedmma.portable import adapted_clip

        return getattr(adapted_clip, name)
    raise AttributeError(f"module 'pfedmma' has no attribute '{name}'")
