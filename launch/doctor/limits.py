"""What the system grants a process: open files, locked memory, shared memory, cores, memory, a clock that is right."""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import psutil

from hcmegatron.planner.machines import GIB, gib
from hcmegatron.platform.available_memory import available_bytes
from launch.doctor.findings import Finding, fault, note, ok, warning
from launch.doctor.subject import Subject

SHM = "/dev/shm"
SHM_NEEDED, SHM_WANTED = (
    64 << 20,
    1 << 30,
)  # bytes a rank (NCCL's rings of a machine take some 10 MiB each), in all
CGROUPS = Path("/sys/fs/cgroup")
_TIME_ERROR = 5  # linux/timex.h
_CLOCK_ERROR_US = 100_000  # that the kernel admits, from which on it is said


def check(subject: Subject) -> Iterator[Finding]:
    """All of them."""
    yield open_files(subject.ranks.world_size)
    yield locked_memory()
    yield processes()
    yield shared_memory(subject)
    yield cores(CGROUPS)
    yield memory()
    yield clock(*kernel_clock())


def _limit(which: int) -> tuple[int, str]:
    soft, _ = resource.getrlimit(which)
    return (1 << 62, "unlimited") if soft == resource.RLIM_INFINITY else (soft, str(soft))


def open_files(world_size: int) -> Finding:
    """Gloo holds a connection to every rank, files and libraries some hundreds more."""
    limit, words = _limit(resource.RLIMIT_NOFILE)
    needed = 256 + 4 * world_size
    if limit < needed:
        return fault(
            "open files", f"ulimit -n {words}; {world_size} ranks take {needed}", f"ulimit -n {needed}"
        )
    if limit < 4096:
        return warning("open files", f"ulimit -n {words}", "ulimit -n 65536")
    return ok("open files", f"ulimit -n {words}")


def locked_memory() -> Finding:
    """InfiniBand registers the memory that it sends from."""
    limit, words = _limit(resource.RLIMIT_MEMLOCK)
    value = f"ulimit -l {words if words == 'unlimited' else limit // 1024}"
    if limit < 1 << 62 and any(Path("/sys/class/infiniband").glob("*")):
        return warning(
            "locked memory", f"{value}, with InfiniBand", "ulimit -l unlimited (limits.conf, slurmd's unit)"
        )
    return ok("locked memory", value)


def processes() -> Finding:
    """Ranks have dozens of threads each, which count."""
    limit, words = _limit(resource.RLIMIT_NPROC)
    if limit < 4096:
        return warning("processes", f"ulimit -u {words}", "ulimit -u 65536")
    return ok("processes", f"ulimit -u {words}")


def shared_memory(subject: Subject) -> Finding:
    """Ranks of a machine exchange through it; containers have 64 MiB of it by default."""
    name, ranks = "shared memory", subject.ranks.local_world_size
    try:
        sizes = subject.system.statvfs(SHM)
    except OSError as error:
        return fault(name, f"{SHM}: {error.strerror}", "mount a tmpfs there")
    free = sizes.f_bavail * sizes.f_frsize
    value = f"{SHM} has {gib(free)} GiB free"
    remedy = "docker run --shm-size=8g (or --ipc=host); mount -o remount,size=8g /dev/shm"
    if free < SHM_NEEDED * ranks:
        return fault(name, f"{value}, for {ranks} rank{'s' if ranks > 1 else ''}", remedy)
    if free < SHM_WANTED:
        return warning(name, value, remedy)
    return ok(name, value)


def cores(groups: Path, process: Path = Path("/proc/self/cgroup")) -> Finding:
    """Cores that this process may run on, and the share of time that its control group grants."""
    own = len(os.sched_getaffinity(0))
    quota = min(_quotas(groups, process), default=float("inf"))
    if quota < own:
        return warning(
            "cores",
            f"{own} cores, of which the control group grants the time of {quota:g}",
            "raise the quota (docker --cpus, SLURM --cpus-per-task), or set training.threads",
        )
    return ok("cores", f"{own} of {os.cpu_count()}, without a quota below that")


def _quotas(groups: Path, process: Path) -> Iterator[float]:
    """Cores of every control group (version 2) above this process that has a quota."""
    lines = process.read_text().splitlines() if process.exists() else []
    for line in lines:
        if line.startswith("0::"):
            folder = groups / line[3:].lstrip("/")
            for group in (folder, *folder.parents):
                limit = group / "cpu.max"
                if group.is_relative_to(groups) and limit.exists():
                    quota, period = limit.read_text().split()
                    if quota != "max":
                        yield int(quota) / int(period)


def memory() -> Finding:
    """The machine's, and what is left of it or of the control group's."""
    total, left = psutil.virtual_memory().total, available_bytes()
    value = f"{gib(left)} of {gib(total)} GiB can be had"
    if left < min(2 * GIB, total / 8):
        return warning("memory", value, "end what holds it, or raise the control group's limit (SLURM --mem)")
    return ok("memory", value)


def kernel_clock() -> tuple[int, int]:
    """(state, largest error in microseconds) of adjtimex(2), which is asked and not changed."""
    buffer = ctypes.create_string_buffer(256)  # struct timex, with modes = 0
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    # modes, then offset, freq, maxerror and esterror as longs, each aligned to 8 bytes
    (error,) = struct.unpack_from("l", buffer, 24)
    return state, error


def clock(state: int, error: int) -> Finding:
    """Whether something keeps the clock right; how far machines' clocks are apart is measured between them."""
    name = "clock"
    if state < 0:
        return note(name, "the kernel does not say whether it is synchronised")
    if state == _TIME_ERROR:
        return note(name, "no time service keeps it right", "chronyd or systemd-timesyncd on the machine")
    if error > _CLOCK_ERROR_US:
        return warning(name, f"synchronised to within {error / 1e3:.0f} ms", "chronyc tracking, timedatectl")
    return ok(name, f"synchronised to within {error / 1e3:.1f} ms")
