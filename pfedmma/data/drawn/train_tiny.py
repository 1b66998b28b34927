"""Train the ``tiny`` CLIP that the package ships: ``python -m pfedmma.data.drawn.train_tiny --out FOLDER``.

Contrastive training (Radford et al. 2021) on captioned drawings of `pfedmma.data.drawn.drawing`, every image drawn once and never
again. A caption may leave the pattern out, so several captions of a batch can be true of one image; such pairs are no
negatives and are left out of the softmax. Neither a camera (`pfedmma.data.partition.camera`) nor a medium
(`pfedmma.data.pixels.medium`) is ever applied: what clients of the data set ``shapes`` see looks different from everything here.

Shape legend: N drawings, M captions, S pixels a side, D features.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from pfedmma.clip.tiny import FOLDER
from pfedmma.data.drawn.drawing import COLOURS, PATTERNS, SHAPES, STYLES, draw_random
from pfedmma.rng import generator

SUMMARY = "Train the tiny CLIP that the package ships on captioned drawings."
STYLE_SHARES = (0.7, 0.1, 0.1, 0.1)  # order of STYLES
PLAIN_CAPTIONS = 0.3  # share of captions without the pattern word


def caption(colour: int, shape: int, pattern: int | None) -> str:
    """ "a photo of a red striped circle.", or without the pattern."""
    words = [COLOURS[colour], *([] if pattern is None else [PATTERNS[pattern]]), SHAPES[shape]]
    return f"a photo of a {' '.join(words)}."


class Captions:
    """All captions of the world as token ids; row (shape, colour, pattern), pattern = len(PATTERNS) for "not said"."""

    def __init__(self) -> None:
        said = [*range(len(PATTERNS)), None]
        texts = [caption(c, s, p) for s in range(len(SHAPES)) for c in range(len(COLOURS)) for p in said]
        self.tokens = open_clip.SimpleTokenizer(context_length=16)(texts)

    def row(self, shape: Tensor, colour: Tensor, pattern: Tensor) -> Tensor:
        """Which of ``tokens`` is the caption of each of these [N]."""
        return (shape * len(COLOURS) + colour) * (len(PATTERNS) + 1) + pattern


def draw_batch(size: int, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(images [N,3,32,32] uint8, shapes [N], colours [N], patterns [N])."""
    shapes, colours, patterns = (torch.randint(len(t), (size,), generator=gen) for t in (SHAPES, COLOURS, PATTERNS))
    styles = torch.multinomial(torch.tensor(STYLE_SHARES), size, replacement=True, generator=gen)
    return draw_random(shapes, colours, patterns, styles, gen), shapes, colours, patterns


def normalise(images: Tensor, config: dict) -> Tensor:
    """uint8 [N,3,S,S] -> float, as the model's configuration says."""
    mean, std = (torch.tensor(config["preprocess_cfg"][k]).view(3, 1, 1) for k in ("mean", "std"))
    return (images.float() / 255.0 - mean) / std


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, true: Tensor, own: Tensor) -> Tensor:
    """Symmetric InfoNCE over N images and M distinct captions.

    Args:
        image, text: normalised features [N,D], [M,D]; scale: the factor on cosines.
        true: [N,M] caption m is true of image n. own: [N] the caption that was drawn with image n.
    """
    logits = scale * image @ text.T
    chosen = torch.nn.functional.one_hot(own, len(text)).bool()
    forward = torch.nn.functional.cross_entropy(logits.masked_fill(true & ~chosen, -math.inf), own)
    # From a caption: each of its own images against the images it is false of.
    others = torch.logsumexp(logits.masked_fill(true, -math.inf), dim=0)[own]
    mine = logits.gather(1, own[:, None]).squeeze(1)
    return 0.5 * (forward + (torch.logaddexp(mine, others) - mine).mean())


@torch.no_grad()
def accuracy(model: open_clip.CLIP, captions: Captions, config: dict, seed: int, style: int) -> dict[str, float]:
    """Zero-shot accuracy over all 480 full captions and over the 120 colour-shape captions, on unseen drawings."""
    gen = generator(seed, "tiny/test", style)
    grid = torch.cartesian_prod(*(torch.arange(len(t)) for t in (SHAPES, COLOURS, PATTERNS))).repeat(4, 1)
    shapes, colours, patterns = grid.unbind(1)
    images = draw_random(shapes, colours, patterns, torch.full_like(shapes, style), gen)
    features = torch.cat([model.encode_image(normalise(b, config), normalize=True) for b in images.split(256)])
    text = model.encode_text(captions.tokens, normalize=True).view(len(SHAPES), len(COLOURS), len(PATTERNS) + 1, -1)
    full = (features @ text[:, :, :-1].flatten(0, 2).T).argmax(1)
    plain = (features @ text[:, :, -1].flatten(0, 1).T).argmax(1)
    target = shapes * len(COLOURS) + colours
    return {
        "shape_colour_pattern": (full == target * len(PATTERNS) + patterns).float().mean().item(),
        "shape_colour": (plain == target).float().mean().item(),
    }


def train(steps: int, batch: int, lr: float, seed: int) -> tuple[open_clip.CLIP, dict]:
    """Train from random weights; returns the model and a record of how it went."""
    torch.manual_seed(seed)
    config = json.loads((FOLDER / "open_clip_config.json").read_text())
    model = open_clip.CLIP(**config["model_cfg"])
    captions = Captions()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = min(200, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * s / steps)))
    start, losses = time.perf_counter(), []
    for step in range(steps):
        loss = batch_loss(model, captions, config, batch, generator(seed, "tiny/train", step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            spent = time.perf_counter() - start
            print(f"step {step + 1}/{steps} loss {sum(losses[-100:]) / 100:.3f} {spent:.0f} s", flush=True)
    model.logit_scale.data.clamp_(max=math.log(100.0))
    record = {
        "steps": steps,
        "batch": batch,
        "lr": lr,
        "seed": seed,
        "final_loss": sum(losses[-100:]) / len(losses[-100:]),
        "accuracy": {name: accuracy(model, captions, config, seed, i) for i, name in enumerate(STYLES)},
        "seconds": time.perf_counter() - start,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "open_clip": open_clip.__version__},
    }
    return model, record


def batch_loss(model: open_clip.CLIP, captions: Captions, config: dict, size: int, gen: torch.Generator) -> Tensor:
    """The loss on ``size`` fresh drawings, each with a caption that says its pattern or does not."""
    images, shapes, colours, patterns = draw_batch(size, gen)
    silent = torch.rand(size, generator=gen) < PLAIN_CAPTIONS
    full = captions.row(shapes, colours, patterns)
    plain = captions.row(shapes, colours, torch.full_like(patterns, len(PATTERNS)))
    rows, own = torch.where(silent, plain, full).unique(return_inverse=True)
    true = (full[:, None] == rows) | (plain[:, None] == rows)
    text = model.encode_text(captions.tokens[rows], normalize=True)
    image = model.encode_image(normalise(images, config), normalize=True)
    return contrastive_loss(image, text, model.logit_scale.exp().clamp(max=100.0), true, own)


def main() -> None:
    """Train, and write the weights and ``training.json``, the record."""
    parser = argparse.ArgumentParser(prog="python -m pfedmma.data.drawn.train_tiny", description=SUMMARY)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the weights and the record")
    parser.add_argument("--steps", type=int, default=4000, help="batches to train on (default 4000)")
    parser.add_argument("--batch", type=int, default=256, help="drawings in a batch (default 256)")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate (default 0.001)")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and all drawings (default 0)")
    args = parser.parse_args()
    model, record = train(args.steps, args.batch, args.lr, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, args.out / "open_clip_model.safetensors", metadata={"format": "pt"})
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
