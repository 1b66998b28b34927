"""Network namespaces on this machine: one for each rank, joined by a bridge, and the programs that run in them.

All which ranks tell each other passes their interfaces, and nothing else does. Needs Linux, root and ``ip`` (iproute2).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from programs import child_environment

from pfedmma.system.errors import UserError

INTERFACE = "eth0"  # of every rank, in its own namespace
PORT = 29500
COUNTERS = ("rx_bytes", "tx_bytes", "rx_packets")


@dataclass(frozen=True)
class Network:
    """A namespace for each rank, joined by a bridge that lies in one more. Nothing outside them changes."""

    hub: str
    ranks: tuple[str, ...]

    def address(self, rank: int) -> str:
        return f"10.0.{rank // 250}.{rank % 250 + 1}"

    def interface(self, rank: int) -> dict[str, Any]:
        """A rank's interface, from outside."""
        found: list[dict[str, Any]] = json.loads(ip("-n", self.ranks[rank], "-s", "-d", "-j", "link", "show", "dev", INTERFACE))
        return found[0]

    def counters(self) -> list[dict[str, int]]:
        """`COUNTERS` of each rank."""
        found = [self.interface(rank)["stats64"] for rank in range(len(self.ranks))]
        return [{name: stats[name[:2]][name[3:]] for name in COUNTERS} for stats in found]

    def sizes(self) -> dict[str, int]:
        """Bytes of a packet at most; bytes (and packets) that the kernel hands over at once and whose header counts once."""
        link = self.interface(0)
        return {name: link[name] for name in ("mtu", "gso_max_size", "gso_max_segs")}


def require_namespaces() -> None:
    """Raise a `UserError` where no network namespaces can be had."""
    if not sys.platform.startswith("linux"):
        raise UserError(f"network namespaces are a part of Linux, and this is {platform.system()}; run this benchmark on Linux")
    if shutil.which("ip") is None:
        raise UserError("there is no 'ip' on PATH; install iproute2")
    if os.geteuid() != 0:
        raise UserError("network namespaces need root, and this is another user; run this benchmark as root")


def ip(*words: str) -> str:
    """What ``ip`` says; a `UserError` if it cannot do what it is told."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"'ip {' '.join(words)}' failed ({why}); network namespaces need root with CAP_SYS_ADMIN and CAP_NET_ADMIN")
    return done.stdout


@contextlib.contextmanager
def network(ranks: int, frames: bool) -> Iterator[Network]:
    """Namespaces for ``ranks``, named by this process; they go however it ends. ``frames``: nothing larger than a frame is handed over.

    IPv6 gets no addresses: its neighbour discovery would send on its own.
    """
    name = f"pfedmma-{os.getpid()}"
    net = Network(f"{name}-hub", tuple(f"{name}-{rank}" for rank in range(ranks)))
    up = ("addrgenmode", "none", "up")
    try:
        for namespace in (net.hub, *net.ranks):
            ip("netns", "add", namespace)
        ip("-n", net.hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", net.hub, "link", "set", "bridge", *up)
        for rank, namespace in enumerate(net.ranks):
            port = f"rank{rank}"
            ip("-n", net.hub, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", namespace)
            ip("-n", net.hub, "link", "set", port, "master", "bridge", *up)
            ip("-n", namespace, "addr", "add", f"{net.address(rank)}/16", "dev", INTERFACE)
            ip("-n", namespace, "link", "set", "lo", "up")
            ip("-n", namespace, "link", "set", INTERFACE, *(("gso_max_segs", "1") if frames else ()), *up)
        yield net
    finally:
        for namespace in (net.hub, *net.ranks):
            remove(namespace)


def remove(namespace: str) -> None:
    """End what still runs in ``namespace`` and delete it, and its interfaces with it; nothing happens where there is none.

    ``ip`` gets sessions of its own, which Ctrl-C at a terminal does not reach.
    """
    running = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, start_new_session=True)
    for process in running.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, start_new_session=True)


def run_ranks(net: Network, folder: Path, command: Callable[[int], Sequence[str]], threads: int, limit: float) -> None:
    """Run Python with the words of ``command(rank)`` in every rank's namespace, to its end.

    Args:
        folder: keeps what they print, as ``output-<rank>.txt``. limit: seconds that they may take.

    Raises:
        UserError: a rank fails, or is not done in time; names the first.
    """
    env = child_environment(
        MASTER_ADDR=net.address(0),
        MASTER_PORT=str(PORT),
        GLOO_SOCKET_IFNAME=INTERFACE,
        WORLD_SIZE=str(len(net.ranks)),
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE="1",
        OMP_NUM_THREADS=str(threads),
    )
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank, namespace in enumerate(net.ranks):
            words = ["ip", "netns", "exec", namespace, sys.executable, *command(rank)]
            own = env | {"RANK": str(rank)}
            with open(folder / f"output-{rank}.txt", "wb") as file:
                processes.append(subprocess.Popen(words, env=own, stdout=file, stderr=subprocess.STDOUT, start_new_session=True))
        failed = await_all(processes, time.monotonic() + limit)
        status = None if failed is None else processes[failed].poll()
    finally:
        for process in processes:
            process.kill()  # nothing happens to one that has ended
            process.wait()
    if failed is not None:
        how = f"is not done within {limit:g} s" if status is None else f"ended with status {status}"
        raise UserError(f"rank {failed} of {folder.name} {how}: {why(folder / f'output-{failed}.txt')}")


def why(output: Path) -> str:
    """The line in which a program that has failed says why."""
    said = output.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
    return next((line.removeprefix("error: ") for line in said if line.startswith("error: ")), said[-1])


def await_all(processes: Sequence[subprocess.Popen[bytes]], deadline: float) -> int | None:
    """The rank that fails first, or is not done at ``deadline``; None once all have ended well."""
    while time.monotonic() < deadline:
        statuses = [process.poll() for process in processes]
        if any(statuses):
            return next(rank for rank, status in enumerate(statuses) if status)
        if None not in statuses:
            return None
        time.sleep(0.05)
    return next((rank for rank, process in enumerate(processes) if process.poll() is None), None)
