"""What ranks run whose profile is compared with what the emulation of link and stages knows."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
import torch.distributed as dist

from hcmegatron.pipeline.node_times import NodeTimes
from hcmegatron.profiling.clock import measure_offset
from hcmegatron.profiling.rank_step import RankRecord, RankStep
from hcmegatron.profiling.recording import rank_step
from schedules import generate
from schedules.runtime import DistributedTransport, Runtime
from schedules.runtime.link import EmulatedLink
from tools.bench_link import SHAPE, LinkCase
from tools.sleeping_stage import SleepingStage

CPU = torch.device("cpu")
SIZE = torch.Size(SHAPE).numel() * torch.float32.itemsize


class Truth(NamedTuple):
    """What the emulation of one rank did: when its stages slept, and when what it sent left and arrived."""

    slept: list[tuple[float, float]]
    sent: list[tuple[int, float, float]]  # target rank, left, arrived


class _Stage(SleepingStage):
    """Notes when it sleeps."""

    def __init__(self, slept, *arguments):
        super().__init__(*arguments)
        self.slept = slept

    def _noted(self, work, *arguments):
        start = time.monotonic()
        result = work(*arguments)
        self.slept.append((start, time.monotonic()))
        return result

    def forward(self, microbatch, input):
        return self._noted(super().forward, microbatch, input)

    def backward(self, microbatch, output_grad):
        return self._noted(super().backward, microbatch, output_grad)

    def backward_input(self, microbatch, output_grad):
        return self._noted(super().backward_input, microbatch, output_grad)

    def backward_weight(self, microbatch):
        return self._noted(super().backward_weight, microbatch)


class _Link(EmulatedLink):
    """Notes what it carries."""

    def __init__(self, sent, link):
        super().__init__(link)
        self.sent = sent

    def arrival(self, target_rank, size):
        left, arrives = time.monotonic(), super().arrival(target_rank, size)
        self.sent.append((target_rank, left, arrives))
        return arrives


def profiled(case: LinkCase, steps: int = 1) -> tuple[RankRecord, list[Truth]]:
    """This rank's record and the emulation's own of some steps, after one that warms up."""
    group = dist.group.WORLD
    schedule = generate(case.schedule, group.size(), case.microbatches)
    where, truth, message = schedule.placement, Truth([], []), torch.zeros(SHAPE)
    stages = {
        stage: _Stage(
            truth.slept,
            case.forward,
            None if where.next(stage) is None else message,
            None if where.previous(stage) is None else message,
        )
        for stage in where.stages_of(group.rank())
    }
    link = _Link(truth.sent, case.link(SIZE, case.forward))
    transport = DistributedTransport(group, where, CPU, link)
    runtime = Runtime(
        schedule,
        group.rank(),
        stages,
        transport,
        shape=lambda message: SHAPE,
        dtype=torch.float32,
        device=CPU,
        lockstep=case.lockstep,
    )
    own: list[RankStep] = []
    truths: list[Truth] = []
    for number in range(1 + steps):
        truth.slept.clear()
        truth.sent.clear()
        dist.barrier()
        times = NodeTimes(time.monotonic)
        began = time.monotonic()
        record = runtime.step(times.mark)
        ended = record.end
        own.append(rank_step(number, record, times, (began, ended, ended), began, 0))
        truths.append(Truth(list(truth.slept), list(truth.sent)))
    offset = measure_offset(group)
    record = RankRecord(
        group.rank(), tuple(range(group.size())), "here", offset.seconds, offset.uncertainty, tuple(own[1:])
    )
    return record, truths[1:]
