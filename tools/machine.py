"""The machine that a benchmark runs on: what it is, and whether the benchmark had it to itself."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

BUSY = 0.1  # of its cores: what other programs may have before figures say more about them
NO_VERDICT = 3  # exit status
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def described() -> str:
    """Processor, caches of its first core, cores that this process may use, load, and the day."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    return f"{_processor()}; {_caches()}{cores} cores, load {load:.1f}; {date.today()}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def _caches() -> str:
    found = []
    for index in sorted(_CACHES.glob("index*")):
        level, size, kind = ((index / name).read_text().strip() for name in ("level", "size", "type"))
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return f"{', '.join(found)}; " if found else ""


class Others:
    """What other programs take of the machine, from now on."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def share(self) -> float:
        """Of all cores' time, what neither this process has used nor those that it has waited for."""
        used = _busy_seconds() - self._busy - (_own_seconds() - self._own)
        return max(0.0, used / (os.cpu_count() or 1) / max(1e-9, time.monotonic() - self._began))

    def __str__(self) -> str:
        return f"other programs had {self.share():.0%} of the cores meanwhile"

    def verdict(self, judge: Callable[[], int]) -> int:
        """The exit status that `judge` gives, after it has said what missed its target; NO_VERDICT, and none, where the
        machine was busy."""
        print(self)
        if self.share() <= BUSY:
            return judge()
        print(f"no verdict: they may have {BUSY:.0%}; run it again on a quiet machine", file=sys.stderr)
        return NO_VERDICT


def _busy_seconds() -> float:
    """Of all cores since boot, time taken from this machine by its host included."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the least and the most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
