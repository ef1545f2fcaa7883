"""A real SLURM of four nodes on this machine: munged, slurmctld and slurmd on loopback, in a folder of their own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hcmegatron.platform.ranks import free_port
from tests.launch import machine

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
NODES = ("n1", "n2", "n3", "n4")
# slurmd of Debian 22.05; batch jobs that are requeued wait for cred_expire, time limits count whole minutes.
CONF = """
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdTimeout=5
InactiveLimit=0
MinJobAge=300
KillWait=5
MpiDefault=none
SwitchType=switch/none
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=1000000 "
NODE += "Weight={weight} State=UNKNOWN\n"
PARTITION = "PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"


def missing():
    """Why there can be no cluster here, or ""."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    lost = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if lost:
        return f"no {', '.join(lost)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "slurmd and slurmctld of two nodes need root"


class Cluster:
    """The commands of a running cluster, and its nodes' daemons."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
        self.nodes: dict[str, subprocess.Popen] = {}

    def run(self, *words: str) -> str:
        """A command's output."""
        done = subprocess.run(
            words, env=os.environ | self.environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def daemon(self, *words: str) -> subprocess.Popen:
        """Start a daemon on a machine of its own, which ends with this process."""
        with (self.folder / f"{Path(words[0]).name}.out").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, machine.__file__, *words],
                env=os.environ | self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.stack.callback(_end, process)
        return process

    def start_node(self, name: str) -> None:
        """A node's daemon."""
        conf = self.environ["SLURM_CONF"]
        self.nodes[name] = self.daemon(_program("slurmd"), "-D", "-N", name, "-f", conf)

    def kill_node(self, name: str) -> None:
        """As if the machine had lost its power: its daemon, and whatever it runs."""
        process = self.nodes.pop(name)
        machine.power_off(process.pid)
        process.wait(10)

    def state(self, job: str) -> str:
        """Of a job, as squeue has it."""
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()

    def all_idle(self) -> None:
        """Wait until every node is, after one was started again."""
        _until(lambda: self.run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(NODES), 180)

    def wait(self, job: str, *states: str, limit: float = 60) -> str:
        """Wait for one of the states."""
        deadline = time.monotonic() + limit
        while (found := self.state(job)) not in states:
            assert time.monotonic() < deadline, (job, found, self.run("scontrol", "show", "job", job))
            time.sleep(0.2)
        return found


@contextmanager
def cluster(folder: Path):
    """The cluster, in `folder`, until the context is left."""
    host, user = socket.gethostname().partition(".")[0], "root"
    for name in ("state", *(f"spool-{name}" for name in NODES)):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    ports = [free_port() for _ in (0, *NODES)]
    text = CONF.format(host=host, port=ports[0], folder=folder, user=user)
    text += "".join(
        NODE.format(name=name, host=host, port=port, weight=weight)  # jobs get those of less weight
        for weight, (name, port) in enumerate(zip(NODES, ports[1:], strict=True), 1)
    )
    (folder / "slurm.conf").write_text(text + PARTITION)
    with ExitStack() as stack:
        found = Cluster(folder, stack)
        names = {"key-file": key} | {
            f"{kind}-file": folder / f"munge.{kind}" for kind in ("pid", "log", "seed")
        }
        files = [f"--{option}={file}" for option, file in names.items()]
        found.daemon(_program("munged"), "-F", "--force", f"--socket={folder}/munge.sock", *files)
        _until(lambda: (folder / "munge.sock").exists())
        found.daemon(_program("slurmctld"), "-D", "-f", found.environ["SLURM_CONF"])
        for name in NODES:
            found.start_node(name)
        found.all_idle()
        try:
            yield found
        finally:
            with suppress(Exception):
                found.run("scancel", "--full", "-p", "p")
                found.run("scancel", "--signal=KILL", "--full", "-p", "p")
                _until(lambda: not found.run("squeue", "-h").strip(), 15)


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _until(true, limit: float = 30) -> None:
    deadline = time.monotonic() + limit
    while True:
        with suppress(AssertionError):
            if true():
                return
        assert time.monotonic() < deadline, "the cluster did not start; see its logs"
        time.sleep(0.1)
