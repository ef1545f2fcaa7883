"""Clocks of ranks, which run on machines of their own: how far each is from rank 0's, by round trips."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

ROUNDS = 24
_TAG = 1 << 20  # beside those of messages between stages, none of which is under way


class ClockOffset(NamedTuple):
    """Seconds to add to a rank's own times to have them on rank 0's clock, to within `uncertainty`."""

    seconds: float
    uncertainty: float


def measure_offset(
    group: dist.ProcessGroup, clock: Callable[[], float] = time.monotonic, rounds: int = ROUNDS
) -> ClockOffset:
    """This rank's. Collective over a group of gloo's, of which rank 0 asks one rank after another for its time.

    Of a round trip between t0 and t1 the answer was given at their middle, to within half of what the trip took: the
    shortest one counts.
    """
    mine = torch.zeros(2, dtype=torch.float64)
    ask, answer = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    if group.rank() == 0:
        for other in range(1, group.size()):
            best = (float("inf"), 0.0)
            for _ in range(rounds):
                start = clock()
                dist.send(ask, group=group, group_dst=other, tag=_TAG)
                dist.recv(answer, group=group, group_src=other, tag=_TAG)
                end = clock()
                best = min(best, (end - start, (start + end) / 2 - float(answer)))
            dist.send(
                torch.tensor([best[1], best[0] / 2], dtype=torch.float64),
                group=group,
                group_dst=other,
                tag=_TAG,
            )
        return ClockOffset(0.0, 0.0)
    for _ in range(rounds):
        dist.recv(ask, group=group, group_src=0, tag=_TAG)
        answer[0] = clock()
        dist.send(answer, group=group, group_dst=0, tag=_TAG)
    dist.recv(mine, group=group, group_src=0, tag=_TAG)
    return ClockOffset(*mine.tolist())


def between(before: ClockOffset, after: ClockOffset) -> ClockOffset:
    """Of the time between two measurements: clocks drift apart."""
    drift = abs(after.seconds - before.seconds) / 2
    return ClockOffset(
        (before.seconds + after.seconds) / 2, max(before.uncertainty, after.uncertainty) + drift
    )
