"""Ranks that each pass for a machine of their own, n1, n2 and so on, and what is planted in them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from hcmegatron.platform.process_signals import end_with_parent
from hcmegatron.platform.ranks import RankInfo
from launch.doctor import examination, messages
from launch.doctor.board import Lost
from launch.doctor.examination import examine
from launch.doctor.run_sizes import RunSizes
from launch.doctor.system import System, dial
from launch.doctor.visit import Request

SMALL = RunSizes("a test", 1 << 16, 1 << 15, 1 << 16, 1 << 20, 2)


def visit(directory, planted=None, limit=20.0, seconds=0.03, machines=None):
    """What the rank's examination says: as JSON of findings, and what is to be left out; None from other ranks.

    planted: by rank, a function that gives the fields of its System, run on that rank.
    machines: by rank, its machine; by default one each.
    """
    examination.CPU_S, messages.GRACE_S = seconds, 2.0
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    nodes = machines or {rank: f"n{rank + 1}" for rank in range(world)}
    local = [other for other in range(world) if nodes[other] == nodes[rank]]
    place = RankInfo(
        *(rank, world, local.index(rank), len(local)),
        *("127.0.0.1", int(os.environ["MASTER_PORT"]), "the environment"),
    )
    fields = {"environment": {"SLURMD_NODENAME": nodes[rank]}}
    if planted and rank in planted:
        name, *arguments = planted[rank]
        fields |= globals()[name](*arguments) or {}
    try:
        report = examine(Request(Path(directory), SMALL, limit), place, System(**fields))
    except Lost as error:
        return str(error)
    if report is None:
        return None
    said = [
        (one.level.name.lower(), one.name, one.value, list(one.nodes))
        for one in report.findings
        if one.level >= 2 or one.name in ("connections", "the same everywhere", "run directory, shared")
    ]
    return {"said": said, "bad": report.bad, "status": report.status, "figures": report.figures}


def clock_ahead(seconds):
    return {"clock": lambda: time.time() + seconds}


def without_interface():
    """Gloo is told to use an interface that is not there."""
    os.environ["GLOO_SOCKET_IFNAME"] = "ib7"
    return {"environment": {"SLURMD_NODENAME": "n1", "GLOO_SOCKET_IFNAME": "ib7"}}


def breaks_in_messages():
    """Fails where it would exchange its first message."""

    def fail(self, *arguments):
        raise RuntimeError("no memory\nand frames")

    messages.Links._pair = fail


def refused(*ranks):
    """No connection from here to these ranks."""

    def refusing(rank, address, timeout):
        if rank in ranks:
            raise ConnectionRefusedError(111, "Connection refused")
        return dial(rank, address, timeout)

    return {"dial": refusing}


def killed_in_messages():
    """Killed when it would exchange its first message."""

    def kill(self, *arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    messages.Links._pair = kill


def fails_to_multiply():
    """As a GPU that has fallen off the bus."""

    def fail(*arguments, **options):
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with TORCH_USE_CUDA_DSA")

    torch.mm = fail


def fails_to_copy():
    """The same, later."""

    def fail(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    examination.speed.copy_tbs = fail


def unknown_to_the_driver():
    """torch finds that a device does not answer where it asks for its name."""

    def fail():
        raise RuntimeError("CUDA error: system not yet initialized")

    examination.packages.of_torch = fail


def multiplies_slowly():
    """Its device takes 200 ms more for every product."""
    multiply = torch.mm

    def slow(*arguments, **options):
        time.sleep(0.2)
        return multiply(*arguments, **options)

    torch.mm = slow


def keeps_to_the_first_core():
    """Off the core that another rank shares with other programs."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def shares_its_core():
    """Another program has this rank's core half of the time and more."""
    core = {max(os.sched_getaffinity(0))}

    def there() -> None:
        os.sched_setaffinity(0, core)
        end_with_parent(signal.SIGKILL)

    for _ in range(2):
        subprocess.Popen(
            [sys.executable, "-c", "import time\nend = time.time() + 12\nwhile time.time() < end: pass"],
            preexec_fn=there,
        )
    os.sched_setaffinity(0, core)
    os.nice(5)


def meet(directory, present, limit):
    """As `visit`, of some ranks only."""
    if int(os.environ["RANK"]) not in present:
        return None
    os.environ["SLURM_STEP_NODELIST"], os.environ["SLURM_STEP_TASKS_PER_NODE"] = "n[1-3]", "1(x3)"
    return visit(directory, {0: ("of_slurm",)}, limit)


def of_slurm():
    names = ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
    return {"environment": {"SLURMD_NODENAME": "n1", **{name: os.environ[name] for name in names}}}
