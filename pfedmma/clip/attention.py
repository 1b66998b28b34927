"""Which of torch's attention kernels a GPU runs.

On Hopper torch by itself takes cuDNN's first, which makes a plan for every new shape of its inputs (78 ms, on an H200). Runs in which
clients have unequal numbers of images have dozens of shapes, so that one is left out unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

FLASH, EFFICIENT, CUDNN, MATH = KERNELS = "flash", "mem_efficient", "cudnn", "math"  # as in torch.backends.cuda.enable_<kernel>_sdp
# Plain products stand in wherever no other kernel of a choice takes the inputs: flash takes no fp32, and no mask.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "auto": (FLASH, EFFICIENT, MATH),
    "flash": (FLASH, MATH),
    "efficient": (EFFICIENT, MATH),
    "cudnn": KERNELS,
    "math": (MATH,),
}


def use(choice: str) -> None:
    """Let this process's attention take the kernels of one of `CHOICES`, in torch's own order of preference.

    Said once, when the backbone is loaded: it costs nothing a call, and holds for the backward pass, too.
    """
    for kernel in KERNELS:
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(kernel in CHOICES[choice])
