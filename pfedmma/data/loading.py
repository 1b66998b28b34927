"""From the settings of ``data`` to the images of a run: a source is opened, divided among clients, and read as pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pfedmma.clip.preprocess import Preprocess
from pfedmma.comm.world import World
from pfedmma.data.partition import partition_file
from pfedmma.data.partition.camera import KINDS, camera
from pfedmma.data.partition.division import Division
from pfedmma.data.partition.federated import FederatedData, count_new, with_new_clients
from pfedmma.data.partition.protocols import PROTOCOLS
from pfedmma.data.pixels.pixels import Pixels
from pfedmma.data.sources.base import GENERIC_TEMPLATE, Source, Wanted, template_problem
from pfedmma.data.sources.names import renamed
from pfedmma.data.sources.registry import DATA_SETS, NAMES
from pfedmma.stack.offload import Budget
from pfedmma.system import checks
from pfedmma.system.console import warn
from pfedmma.system.errors import UserError
from pfedmma.system.files import expanded
from pfedmma.system.options import SAME_RESULT, setting

FULL, REDUCED = "full", "reduced"
SPARE = 2  # times the side of the backbone's input: the shorter side of a reduced image


def _hue_earlier(flat: Mapping[str, Any]) -> str:
    """The kind of camera before there was a choice; where no client had a camera, any."""
    return "hue" if flat["data.camera"] > 0 or (flat["data.name"] == "shapes" and flat["data.camera"] < 0) else "pattern"


def _no_medium_earlier(flat: Mapping[str, Any]) -> float:
    """Pictures were as they were drawn; those of other data sets are by default."""
    return 0.0 if flat["data.name"] == "shapes" else -1.0


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are divided among clients."""

    name: str = setting("shapes", "shapes (drawn, no files), caltech101, domainnet, imagefolder, or another data set of configs/README.md")
    root: str = setting("", "folder with the data set", SAME_RESULT)
    protocol: str = setting(
        "base_to_novel", "how images are divided: base_to_novel, base_to_novel_dirichlet, iid, dirichlet, pachinko or domains"
    )
    clients: int = setting(10, "number of clients")
    new_clients: float = setting(
        0.0, "share of the clients that never train in a round and come after the last one, 0 to less than 1; see evaluation.new_clients_*"
    )
    shots: int = setting(16, "training images of a class; 0: all")
    beta: float = setting(0.5, "concentration of the Dirichlet draws; smaller means more skew")
    min_samples: int = setting(1, "training images that every client gets at least")
    domains: tuple[str, ...] = setting((), "domains that are used, in this order, such as [photo, sketch]; empty: all (shapes: none)")
    held_out_domain: str = setting("", "a domain that no client holds, tested as unseen")
    partition_file: str = setting("", "a partition written by python -m pfedmma.describe --out; it takes the place of data.protocol")
    template: str = setting(
        "generic",
        'class prompt: generic ("a photo of a {}."), dataset (the usual one of the data set), or a text with {}',
    )
    class_names: str = setting("", "a file that names the classes, as text or JSON: an id and a name for each, or the names in order")
    test_fraction: float = setting(0.3, "share of the images that becomes the test split of folders without one")
    all_classes: bool = setting(False, "all 345 classes of DomainNet instead of the usual ten")
    download: bool = setting(False, "let torchvision fetch CIFAR", SAME_RESULT)
    augment: str = setting(
        "auto",
        "training images: crop (random resized crop and flip), none, or auto (none for shapes, crop for photographs)",
    )
    camera: float = setting(-1.0, "strength of what each client's own camera does to its pictures, 0 to 1; -1: the data set's own default")
    camera_kind: str = setting("pattern", "what cameras do: pattern (of a sensor, as strong for all clients) or hue", earlier=_hue_earlier)
    medium: float = setting(
        -1.0, "how far all pictures of all clients are halftone prints, 0 to 1; -1: the data set's own default", earlier=_no_medium_earlier
    )
    on_bad_image: str = setting("stop", "an unreadable image ends the run (stop), or is left out and counted (skip)")
    decode: str = setting(
        "full",
        "training images that are cropped: full (as large as they are), or reduced once (shorter side at most twice the backbone's input)",
    )
    cache_gb: float = setting(8.0, "GB of decoded images kept in memory; the rest lies in a temporary file", SAME_RESULT)
    device_cache_gb: float = setting(
        8.0,
        "GB of decoded images that each rank keeps on its GPU, those of tests at most half of it; the rest as data.cache_gb says",
        SAME_RESULT,
    )

    def __post_init__(self) -> None:
        checks.one_of("name", self.name, NAMES)
        checks.one_of("protocol", self.protocol, PROTOCOLS)
        checks.at_least("clients", self.clients, 1)
        _require_both_kinds(self.clients, self.new_clients)
        checks.at_least("shots", self.shots, 0)
        checks.positive("beta", self.beta)
        checks.at_least("min_samples", self.min_samples, 1)
        checks.in_unit_interval("test_fraction", self.test_fraction)
        checks.one_of("augment", self.augment, ("auto", "crop", "none"))
        checks.share_or_default("camera", self.camera, -1.0)
        checks.one_of("camera_kind", self.camera_kind, KINDS)
        checks.share_or_default("medium", self.medium, -1.0)
        checks.one_of("on_bad_image", self.on_bad_image, ("stop", "skip"))
        checks.one_of("decode", self.decode, (FULL, REDUCED))
        for name in ("cache_gb", "device_cache_gb"):
            checks.at_least(name, getattr(self, name), 0)
        if self.template not in ("generic", "dataset") and (self.template.count("{}") != 1 or template_problem(self.template)):
            raise UserError(f"template: '{self.template[:80]}' must be 'generic', 'dataset' or a text with one {{}} for the class name")
        if self.held_out_domain and self.protocol.startswith("base_to_novel"):
            raise UserError(f"held_out_domain: {self.protocol} has no unseen domain; use data.protocol=domains, dirichlet or iid")


def load(config: DataConfig, seed: int, test_split: str, preprocess: Preprocess, world: World) -> tuple[FederatedData, Pixels]:
    """Open the source that ``config`` names and divide it among clients; its pixels as ``preprocess`` asks for, for this rank.

    Raises:
        UserError: the data set is not there, or cannot be divided like this.
    """
    source = open_source(config, seed, preprocess.size)
    if world.is_main:
        say(source)
    federated = seen_by_clients(source, config, seed, test_split)
    augment = source.augment if config.augment == "auto" else config.augment
    if config.decode == REDUCED:
        if augment == "none":
            raise UserError(
                "data.decode: reduced is about training images that are cropped, and these are not; use full, or data.augment=crop"
            )
        source = source.with_smaller("train", SPARE * preprocess.size)
    budget = Budget(config.device_cache_gb * 1e9, config.cache_gb * 1e9)
    return federated, Pixels(source, preprocess, augment, world.device, budget, world.local_size)


def seen_by_clients(source: Source, config: DataConfig, seed: int, test_split: str) -> FederatedData:
    """The partition that ``config`` asks for, tested on ``test_split``, each client with the camera that it sees all images through."""
    federated = divide(source, config, seed, test_split)
    strength = source.cameras.get(config.camera_kind, 0.0) if config.camera == -1.0 else config.camera
    if strength == 0:
        return federated
    seen = tuple(dataclasses.replace(c, camera=camera(seed, c.id, strength, config.camera_kind)) for c in federated.clients)
    return dataclasses.replace(federated, clients=seen)


def say(source: Source) -> None:
    """Tell the user, on stderr, what of the data set was left out, made up or read in an unusual way."""
    for note in source.notes:
        warn(note)


def open_source(config: DataConfig, seed: int, size: int) -> Source:
    """The data set that ``config`` names, with the class prompt and in the medium that it asks for.

    Args:
        seed: of the run. size: pixels a side at which images are drawn, where they are drawn.

    Raises:
        UserError: the data set is not at ``data.root``, or not whole.
    """
    wanted = Wanted(
        config.name,
        config.root,
        seed,
        size,
        test_fraction=config.test_fraction,
        all_classes=config.all_classes,
        download=config.download,
        domains=config.domains,
    )
    source = DATA_SETS[config.name](wanted)
    if config.domains and not source.domains:
        raise UserError(f"data.domains: {source.name} has no domains; leave it out, or see shapes, domainnet and domainfolder")
    if config.class_names:
        source = renamed(source, config.class_names)
    templates = {"generic": GENERIC_TEMPLATE, "dataset": source.own_template or GENERIC_TEMPLATE}
    medium = source.medium if config.medium == -1.0 else config.medium
    return dataclasses.replace(source, template=templates.get(config.template, config.template), medium=medium)


def divide(source: Source, config: DataConfig, seed: int, test_split: str) -> FederatedData:
    """The partition that ``config`` asks for; it depends on the source and the seed alone.

    Raises:
        UserError: the source cannot be divided like this, or the partition file is of other data.
    """
    if config.partition_file:
        federated = _from_file(source, config, test_split)
    else:
        division = Division(
            config.clients, seed, shots=config.shots, beta=config.beta, least=config.min_samples, held_out=config.held_out_domain
        )
        federated = PROTOCOLS[config.protocol](source, division, test_split)
    return with_new_clients(federated, config.new_clients, seed)


def _require_both_kinds(clients: int, share: float) -> None:
    """Raise a `UserError` if a share of new clients, where one is asked for, leaves nobody new, or nobody to train."""
    checks.below_one("new_clients", share)
    new = count_new(clients, share)
    if share > 0 and not 0 < new < clients:
        missing = "client to train" if new else "new client"
        raise UserError(f"new_clients: {share:g} of {clients} clients leaves no {missing}; at least one of either kind is needed")


def _from_file(source: Source, config: DataConfig, test_split: str) -> FederatedData:
    federated = partition_file.read(expanded(config.partition_file), source)
    if federated.base.split != test_split:
        raise UserError(
            f"data.partition_file: {config.partition_file} divides the '{federated.base.split}' split; set evaluation.split to it"
        )
    held = len(federated.clients)
    if held != config.clients:
        raise UserError(f"data.clients: {config.partition_file} has {held} clients, not {config.clients}; set data.clients={held}")
    return federated
