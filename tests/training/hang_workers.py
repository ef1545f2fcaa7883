"""Runs of which a rank is stopped, started as the command starts them."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch.distributed as dist

from hcmegatron.config.schema import Config
from hcmegatron.data.corpus import find_corpus
from hcmegatron.platform import distributed, local_launch
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training.start_ranks import start_ranks
from hcmegatron.training.step import Stepper
from hcmegatron.training.train_cli import TRAIN


def stopped(config: Config) -> int:
    """Train; the last rank stops (SIGSTOP) between the gradients and the update of its second step.

    Returns:
        the exit status.
    """
    usual, calls = Stepper.update, []

    def update(self: Any, mean: float) -> tuple[float, bool]:
        calls.append(mean)
        if len(calls) == 2 and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return usual(self, mean)

    Stepper.update, local_launch.GRACE_S = update, 0.5
    return start_ranks(config, "run", find_corpus(config.data), TRAIN)


def absent(config: Config) -> int:
    """Train; the last rank stops (SIGSTOP) before it meets the others. Returns the exit status."""
    usual = distributed.meet_ranks

    def meet(ranks: RankInfo, *arguments: Any) -> dist.Store:
        if ranks.rank == ranks.world_size - 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return usual(ranks, *arguments)

    distributed.meet_ranks, local_launch.GRACE_S = meet, 0.5
    return start_ranks(config, "run", find_corpus(config.data), TRAIN)
