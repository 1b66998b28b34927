"""A SLURM cluster of two nodes, both on this machine, from the distribution's packages, in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
PACKAGES = ("slurm-wlm", "munge")
NODES = ("localhost", "other")  # the first of a job's nodes is where its ranks meet, by a name that is known everywhere

# The controller looks every second for jobs to start, and lets a requeued job wait seconds instead of two minutes (cred_expire). A job that
# is slow to end has ten minutes more (OverTimeLimit). There are more CPUs than there may be (config_overrides): the jobs mostly sleep.
# SLURM takes "other" for defined twice if it comes after "localhost".
CONFIG = """
ClusterName=check
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
ReturnToService=2
OverTimeLimit=10
GresTypes=gpu
NodeName=DEFAULT CPUs=8 CoresPerSocket=8 Gres=gpu:4 State=UNKNOWN
NodeName=other NodeAddr=127.0.0.1 Port={ports[2]}
NodeName=localhost NodeAddr=127.0.0.1 Port={ports[1]}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no cluster can be had here; empty if it can. Installs the packages if they are missing."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    if all(map(shutil.which, PROGRAMS)):
        return ""
    if not shutil.which("apt-get"):
        return f"{' and '.join(PACKAGES)} are not installed, and there is no apt-get"
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        ended = subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            return f"apt-get {command[0]} failed: {' '.join(ended.stderr.split())[-200:]}"
    return ""


class CannotStart(Exception):
    """The daemons do not run on this machine, in a container that forbids it, say."""


class Cluster:
    """Started on entry, gone on exit. Its clients need `environment`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.left: list[int] = []  # processes that outlived their jobs and had to be killed

    def __enter__(self) -> Cluster:
        self.folder.mkdir(mode=0o755)
        for name in ("ctld", *NODES):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(CONFIG.format(folder=self.folder, ports=free_ports(3)))
        # GPUs in name only: they are counted, not used.
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero,/dev/full,/dev/random\n")
        try:
            self.start_munge()
            self.start("slurmctld", "-c", "-f", str(self.folder / "slurm.conf"))
            for node in NODES:
                self.start("slurmd", "-N", node, "-f", str(self.folder / "slurm.conf"))
            self.wait_for_nodes()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, (subprocess.CalledProcessError, RuntimeError)):
                raise CannotStart(f"{error} {getattr(error, 'stderr', b'') or ''}") from error
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.run("scancel", "--state=PENDING,RUNNING", "--user=root")
        deadline = time.monotonic() + 300
        while self.run("squeue", "--noheader").stdout.strip() and time.monotonic() < deadline:
            time.sleep(0.5)
        for daemon in (*NODES, "slurmctld", "munged"):
            end(self.folder / f"{daemon}.pid")
        deadline = time.monotonic() + 60
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.left = left
        for process in self.left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def processes(self) -> list[int]:
        """The daemons, and all that runs in jobs."""
        mark = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munge.seed",
        }
        self.start("munged", "--force", *(f"--{option}={self.folder / name}" for option, name in files.items()))

    def start(self, *command: str) -> None:
        subprocess.run(command, env=self.environment, check=True, capture_output=True)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A client of the cluster."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def wait_for_nodes(self) -> None:
        deadline = time.monotonic() + 300
        while (state := self.run("sinfo", "--noheader", "--Node", "--format=%T")).stdout.split() != ["idle"] * len(NODES):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the nodes do not come up: {state.stdout} {state.stderr}")
            time.sleep(0.2)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number).stdout
        return dict(item.split("=", 1) for item in shown.split() if "=" in item)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def end(pid_file: Path) -> None:
    """End a daemon that has written this file, and wait until it is gone."""
    if not pid_file.exists():
        return
    process = int(pid_file.read_text())
    for number in (15, 9):
        try:
            os.kill(process, number)
            for _ in range(100):
                time.sleep(0.1)
                os.kill(process, 0)
        except ProcessLookupError:
            return
