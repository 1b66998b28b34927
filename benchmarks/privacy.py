"""What an upload tells about a client: attacks by somebody who knows the backbone, the protocol, and everything that the server sees.

    python benchmarks/privacy.py [--uploads shared,own,fedavg_mma,promptfl,fedlora] [--quick] [--check] [key=value ...]

The embedded default with the settings of the demo, and ``key=value`` over them, such as data.camera_kind=hue. Each victim holds 6 of the 60
base classes, drawn for each, 2 pictures of each, and a camera of its own. All victims take part in two rounds. The attacker simulates
clients that hold other pictures, and learns ridge regressions from what is seen of them in the first round:

- **classes**: a score for every class; AUC of the classes held, and how many of the 6 highest scores are of held ones (chance .10).
  ``no basis``: the same from norms and singular values alone, which a private start does not hide.
- **membership**: is this very picture in the training set? Candidates are pictures of the victim's classes that it did not train on
  (``same``, the hard and honest question), or of classes that it does not hold (``other``, easy: the classes tell). A candidate's score is
  the product of its features in the frozen CLIP with the mean features that the ridge finds; under ``same`` both less that of the class.
- **by losses**: no ridge and no simulated client: the update is put into the model, whose private tensors are as they begin, and a
  picture's score is how far its loss falls. The attacker has candidates as the victim's camera took them, and for classes pictures of its
  own. ``seed known``: the server knows the seed, from which a client's own start follows; a deployment has to keep it from the server.
- **camera**: correlation of what the ridge finds with the truth: of the angle of the hue (circular), or of how a pattern moves the features
  of pictures, along the direction in which cameras differ most. ``named``: the camera is picked out of those of all victims.
- **linked**: the update whose direction is nearest among those of all victims in the second round is the client's own.
- **means**: the server sees sums alone: AUC of the classes that a cohort of 2, 10 or 20 holds, learnt from simulated cohorts.

Methods that exchange nothing (local, or S frozen) send nothing, so there is nothing to attack. 95 % intervals: bootstrap over victims; of
means, as if only cohorts without common clients counted. ``--check`` ends with an error unless class AUC is above .75 under a shared start,
below .56 under an own one, and below .65 there without a basis. A table, and JSON on the last line.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine, publish
from privacy_attacks import (
    Figure,
    Ridge,
    auc,
    bootstrap,
    circular_correlation,
    closeness,
    cohorts_of,
    correlation,
    found_again,
    mean_auc,
    mean_of,
    named,
    of_cohorts,
    without_basis,
)
from privacy_clients import Federation, Sizes, Traces, config_from
from privacy_held import KINDS, Held, liking
from programs import require_at_least
from rich.table import Table
from torch import Tensor

from pfedmma import rng
from pfedmma.comm.world import DistributedConfig, World, open_world
from pfedmma.config.schema import Config
from pfedmma.server.rules import SHARED as OF_SERVER
from pfedmma.system.console import say, show
from pfedmma.system.errors import UserError, run_main

SHARED, OWN = "shared", "own"
UPLOADS: dict[str, list[str]] = {
    SHARED: ["method.name=pfedmma", "method.private_init=shared"],
    OWN: ["method.name=pfedmma", "method.private_init=own"],
    "fedavg_mma": ["method.name=fedavg_mma"],
    "promptfl": ["method.name=promptfl", "method.promptfl.words=a photo of a"],
    "fedlora": ["method.name=fedlora"],
}
COHORTS = (2, 10, 20)  # whose means are attacked
DEALS = 5  # times that all victims are dealt to cohorts
ABOVE, BELOW, HIDDEN = 0.75, 0.56, 0.65  # class AUC under a shared and under an own start; and there without a basis
FULL, QUICK = Sizes(victims=200, simulated=600), Sizes(victims=30, simulated=100)
HEADS = ("upload", "numbers", "classes\nnamed", "class\nAUC", "no\nbasis", "member\nsame", "member\nother", "linked")
MORE_HEADS = ("camera\nr", "camera\nnamed", *(f"mean\nof {size}" for size in COHORTS))


def attack(name: str, config: Config, sizes: Sizes, world: World) -> dict[str, Any]:
    """Everything that is found from one kind of upload."""
    say(f"{name}: {sizes.victims + sizes.simulated} clients train")
    begin = time.process_time()
    federation = Federation(config, sizes, world)
    traces, held = federation.train(), Held(federation)
    ridge = Ridge(traces.first[sizes.victims :], traces.first[: sizes.victims])
    found = {"upload": name, "numbers": traces.first.shape[1], "norm": float(traces.first.norm(dim=1).mean())}
    found |= classes_by(ridge, federation)
    found |= {"membership": membership_by(ridge, held), "camera": camera_by(ridge, held)}
    found |= {"linked": mean_of(found_again(traces.first[: sizes.victims], traces.later))}
    if federation.config.method.name == "pfedmma":
        found["no_basis"] = classes_by(Ridge(*hidden(traces, federation)), federation)
    found["by_losses"] = by_losses(held, traces, knows_private=False)
    if federation.start.private is not None:
        found["by_losses_seed_known"] = by_losses(held, traces, knows_private=True)
    enough = [size for size in COHORTS if 2 * size <= sizes.victims and 4 * size <= sizes.simulated]
    found["means"] = {str(size): classes_of_means(size, traces, federation) for size in enough}
    return found | {"processor_seconds": time.process_time() - begin}


def classes_by(ridge: Ridge, federation: Federation) -> dict[str, Figure]:
    """Which classes victims hold."""
    victims = federation.sizes.victims
    scores, truth = ridge(federation.held[victims:], mean_auc), federation.held[:victims]
    return {"class_auc": mean_of(auc(scores, truth)), "classes_named": mean_of(named(scores, truth))}


def hidden(traces: Traces, federation: Federation) -> tuple[Tensor, Tensor]:
    """Of clients to learn from and of victims, what does not depend on a basis."""
    layout, victims = federation.engine.training.layout, federation.sizes.victims
    exchanged = slice(0, layout.exchanged_size)
    known = without_basis(layout.part(exchanged, traces.first), layout.part(exchanged, federation.sent[OF_SERVER]))
    return known[victims:], known[:victims]


def membership_by(ridge: Ridge, held: Held) -> dict[str, Figure]:
    """Which pictures victims have trained on, by the features of their training sets."""
    victims, found = held.federation.sizes.victims, {}
    for kind, numbers in zip(KINDS[1:], (held.peculiar, held.features), strict=True):
        of_clients = held.of_clients(numbers)
        mean = of_clients[victims:].mean(dim=0)
        sought = ridge(of_clients[victims:], closeness) - mean
        scores = torch.einsum("vkhf,vf->vkh", (numbers - mean)[held.candidates].double(), sought)
        found[kind] = mean_of(members_auc(scores, kind))
    return found


def members_auc(scores: Tensor, kind: str) -> Tensor:
    """Of each victim, how far its members [v] are ahead of the other pictures of a kind; ``scores`` [v,kinds,h]."""
    both = scores[:, [0, KINDS.index(kind)]].flatten(1)
    truth = torch.zeros_like(both, dtype=torch.bool)
    truth[:, : scores.shape[2]] = True
    return auc(both, truth)


def camera_by(ridge: Ridge, held: Held) -> dict[str, Figure]:
    """What cameras do."""
    victims, truth = held.federation.sizes.victims, held.cameras().double()
    found, mine = ridge(truth[victims:], closeness), truth[:victims]
    if held.federation.config.data.camera_kind == "hue":
        return {"r": bootstrap(lambda rows: circular_correlation(found[rows], mine[rows]), victims)}
    mean = truth[victims:].mean(dim=0)
    most = torch.linalg.svd(truth[victims:] - mean, full_matrices=False).Vh[0]
    r = bootstrap(lambda rows: correlation(found[rows] @ most, mine[rows] @ most), victims)
    return {"r": r, "named": mean_of(found_again(found - mean, mine - mean))}


def by_losses(held: Held, traces: Traces, knows_private: bool) -> dict[str, Figure]:
    """Classes and membership by how far the update lowers losses."""
    victims = held.federation.sizes.victims
    likes = liking(held, traces.first[:victims], knows_private)
    usual = likes.classes - likes.classes.mean(dim=0)  # over all uploads at hand: some classes gain with every client
    return {
        "class_auc": mean_of(auc(usual, held.federation.held[:victims])),
        **{kind: mean_of(members_auc(likes.candidates, kind)) for kind in KINDS[1:]},
    }


def classes_of_means(size: int, traces: Traces, federation: Federation) -> Figure:
    """Which classes a cohort of so many victims holds, by the server's mean alone."""
    victims, simulated = federation.sizes.victims, federation.sizes.simulated
    generator = rng.generator(federation.config.seed, "attacked cohorts", size)
    learnt = round(0.75 * simulated)  # the cohorts that choose the penalty are of clients of their own, as in `Ridge`
    parts = [cohorts_of(learnt, size, learnt, generator), learnt + cohorts_of(simulated - learnt, size, simulated - learnt, generator)]
    simulated_cohorts, attacked = victims + torch.cat(parts), cohorts_of(victims, size, DEALS * (victims // size), generator)
    ridge = Ridge(*(federation.means(traces.rows, cohorts) for cohorts in (simulated_cohorts, attacked)))
    held = federation.held.double()
    scores = ridge(held[simulated_cohorts].mean(dim=1), closeness)
    return of_cohorts(auc(scores, held[attacked].mean(dim=1) > 0), victims // size)


def broken(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is not as it must be, a sentence each."""
    said = []
    for row in rows:
        of_class = row["class_auc"]["value"]
        if row["upload"] == SHARED and of_class <= ABOVE:
            said.append(
                f"under a shared start class AUC is {of_class:.3f}, not above {ABOVE}: clients begin apart, or the attack is too weak"
            )
        if row["upload"] == OWN and of_class >= BELOW:
            said.append(f"under an own start class AUC is {of_class:.3f}, not below {BELOW}: uploads tell which classes a client holds")
        if row["upload"] == OWN and row["no_basis"]["class_auc"]["value"] >= HIDDEN:
            said.append(f"under an own start class AUC without a basis is {row['no_basis']['class_auc']['value']:.3f}, not below {HIDDEN}")
    return said


def cell(figure: Figure | None) -> str:
    """A number and below it its interval."""
    return "" if figure is None else "{value:.3f}\n{low:.2f}/{high:.2f}".format(**figure).replace("0.", ".")


def table(rows: Sequence[dict[str, Any]], sizes: Sizes) -> Table:
    out = Table(title=f"what one upload tells: {sizes.victims} victims, {sizes.simulated} simulated clients", show_lines=True)
    for head in (*HEADS, *MORE_HEADS):
        out.add_column(head, justify="left" if head == "upload" else "right")
    for row in rows:
        member, camera = row["membership"], row["camera"]
        figures = [row["classes_named"], row["class_auc"], row.get("no_basis", {}).get("class_auc"), *(member[kind] for kind in KINDS[1:])]
        figures += [row["linked"], camera["r"], camera.get("named"), *(row["means"].get(str(size)) for size in COHORTS)]
        out.add_row(row["upload"], f"{row['numbers']:,}", *map(cell, figures))
        for name, what in (("by_losses", "by losses"), ("by_losses_seed_known", "seed known")):
            if losses := row.get(name):
                out.add_row(f"  {what}", "", "", cell(losses["class_auc"]), "", *(cell(losses[kind]) for kind in KINDS[1:]))
    return out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key=value of a run, such as data.camera_kind=hue")
    parser.add_argument("--uploads", default="", help=f"of {', '.join(UPLOADS)}; default: all, with --quick the first two")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK.victims} victims and {QUICK.simulated} simulated clients")
    parser.add_argument("--victims", type=int, default=0, help=f"default: {FULL.victims}")
    parser.add_argument("--simulated", type=int, default=0, help=f"default: {FULL.simulated}")
    parser.add_argument("--check", action="store_true", help="end with an error if a bound does not hold")
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    args = parser.parse_args()
    usual = QUICK if args.quick else FULL
    args.victims, args.simulated = args.victims or usual.victims, args.simulated or usual.simulated
    require_at_least(args, victims=8, simulated=16)
    args.uploads = args.uploads.split(",") if args.uploads else [SHARED, OWN] if args.quick else list(UPLOADS)
    if unknown := [name for name in args.uploads if name not in UPLOADS]:
        raise UserError(f"--uploads: there is no '{unknown[0]}'; there are {', '.join(UPLOADS)}")
    return args


def main() -> None:
    args = arguments()
    world = open_world(DistributedConfig(device="cpu"))
    sizes = Sizes(args.victims, args.simulated)
    configs = {name: config_from([*UPLOADS[name], *args.settings], sizes.victims) for name in args.uploads}
    rows = [attack(name, config, sizes, world) for name, config in configs.items()]
    show(table(rows, sizes), 140)
    report = {
        "benchmark": "privacy",
        "date": datetime.date.today().isoformat(),
        **machine(world.device, "open_clip"),
        "settings": args.settings,
        "victims": sizes.victims,
        "simulated": sizes.simulated,
        "uploads": rows,
    }
    publish(report, args.json)
    if args.check and (said := broken(rows)):
        raise UserError("; ".join(said))


if __name__ == "__main__":
    run_main(main)
