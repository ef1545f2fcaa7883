"""How long other programs had the core that a rank wanted, and which measurements that has spoiled least."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from hcmegatron.platform.distributed import device

T = TypeVar("T")
SCHEDSTAT = Path("/proc/thread-self/schedstat")  # ns on a core, ns waiting for one, time slices


class Sample(NamedTuple):
    """Something measured, and the share of its time in which the rank that had to wait most waited for a core."""

    disturbed: float
    value: object


def waited_ns() -> int:
    """Nanoseconds that this thread has been ready to run without running; 0 where the system does not say."""
    try:
        return int(SCHEDSTAT.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def sample(run: Callable[[], T]) -> Sample:
    """What `run` returns. Collective."""
    start, before = time.monotonic(), waited_ns()
    value = run()
    share = (waited_ns() - before) / 1e9 / max(1e-9, time.monotonic() - start)
    worst = torch.tensor(share, dtype=torch.float64, device=device())
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return Sample(float(worst), value)


def quieter(samples: list[Sample]) -> list[Sample]:
    """The half of them that was disturbed least."""
    return sorted(samples, key=lambda one: one.disturbed)[: max(1, (len(samples) + 1) // 2)]
