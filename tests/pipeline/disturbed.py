"""A training run in which one rank does not do its part, started as the command starts it."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from functools import partial

from hcmegatron.config.schema import Config
from hcmegatron.pipeline.chunk_stage import ChunkStage
from hcmegatron.platform.local_launch import launch_ranks
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training import run
from hcmegatron.training.step import Stepper

MICRO_BATCH = 3  # during whose forward it happens


def start(config: Config, how: str, culprit: int, world_size: int) -> int:
    """The exit status of the ranks, started on this machine."""
    return launch_ranks(partial(rank, config, how, culprit), world_size)


def rank(config: Config, how: str, culprit: int, ranks: RankInfo) -> int:
    """One rank of `hcmegatron train`; in the second training step the culprit dies, stalls or stops early."""
    _say(f"rank {ranks.rank} is process {os.getpid()}")
    usual_step, usual_forward = Stepper.step, ChunkStage.forward
    acting = False

    def step(self, seen):
        nonlocal acting
        if seen == config.training.global_batch:
            time.sleep(1.5)  # for positions to reach the store
            _say(f"begins {time.monotonic()}")
            acting = ranks.rank == culprit
            if acting and how == "cut":
                for (_, forward_only), runtime in self.schedule._runtimes.items():
                    if not forward_only:
                        runtime.program = dataclasses.replace(
                            runtime.program, ops=runtime.program.ops[:MICRO_BATCH]
                        )
        return usual_step(self, seen)

    def forward(self, microbatch, input):
        if acting and microbatch == MICRO_BATCH and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if acting and microbatch == MICRO_BATCH and how == "stall":
            _stall()
        return usual_forward(self, microbatch, input)

    Stepper.step, ChunkStage.forward = step, forward
    try:
        return run.train(config, ranks)
    finally:
        sys.stdout.flush()


def _say(text: str) -> None:
    """In one write, newline included, so that the lines of two ranks do not mix."""
    os.write(1, f"{text}\n".encode())


def _stall() -> None:
    time.sleep(1000)
