"""How long other programs had the core that a rank wanted, and which measurements that has spoiled least."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from hcmegatron.platform.distributed import device
from hcmegatron.platform.waiting import waited_ns

T = TypeVar("T")


class Sample(NamedTuple):
    """Something measured, and the share of its time in which the rank that had to wait most waited for a core."""

    disturbed: float
    value: object


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
