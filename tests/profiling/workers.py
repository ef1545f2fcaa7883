"""What the ranks of the profile's tests run."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from unittest import mock

import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.platform.ranks import STARTED_HERE, discover_ranks
from hcmegatron.profiling import files
from hcmegatron.profiling.clock import measure_offset
from hcmegatron.profiling.run import profile
from hcmegatron.training.observer import Observer, Step


def offsets(shift: float) -> tuple[float, float]:
    """What a rank measures whose clock is `shift` seconds ahead for every rank below it."""
    rank = dist.get_rank()
    found = measure_offset(dist.group.WORLD, lambda: time.monotonic() + rank * shift)
    return found.seconds, found.uncertainty


def profiled(config: Config) -> None:
    """What the verb runs on every rank."""
    assert profile(config, discover_ranks(os.environ)) == 0


class Told(Observer):
    """Is told to stop after some steps."""

    after = 1

    def on_step(self, step: Step) -> None:
        if step.number == self.after:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(config: Config, after: int) -> int:
    """The exit status of a profile that is told to stop after as many steps."""
    Told.after = after
    started_here = replace(discover_ranks(os.environ), source=STARTED_HERE)
    return profile(config, started_here, observers=[Told])


def unwritten(config: Config) -> int:
    """The exit status of a profile that finds the disk full."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with mock.patch.object(files, "write_all", full):
        return profile(config, discover_ranks(os.environ))
