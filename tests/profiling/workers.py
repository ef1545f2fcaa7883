"""What the ranks of the profile's tests run."""

from __future__ import annotations

import os
import time

import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.profiling.clock import measure_offset
from hcmegatron.profiling.run import profile


def offsets(shift: float) -> tuple[float, float]:
    """What a rank measures whose clock is `shift` seconds ahead for every rank below it."""
    rank = dist.get_rank()
    found = measure_offset(dist.group.WORLD, lambda: time.monotonic() + rank * shift)
    return found.seconds, found.uncertainty


def profiled(config: Config) -> None:
    """What the verb runs on every rank."""
    assert profile(config, discover_ranks(os.environ)) == 0
