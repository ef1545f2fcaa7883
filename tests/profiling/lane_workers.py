"""What ranks run whose overlapped stages take set times on emulated lanes, beside what the lanes know of it."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
import torch.distributed as dist

from hcmegatron.model.execution import Execution
from hcmegatron.model.nodes import Lane
from hcmegatron.pipeline.node_times import NodeTimes
from hcmegatron.pipeline.overlap import OverlappedStage
from hcmegatron.profiling.rank_step import RankRecord
from hcmegatron.profiling.recording import rank_step
from schedules import generate
from schedules.costs import Link
from schedules.runtime import DistributedTransport, Runtime
from schedules.runtime.link import EmulatedLink, sleep_until
from tools.bench_overlap import SHAPE, EmulatedLanes, OverlapCase, Rank, TimedChunk, forward_step

CPU = torch.device("cpu")


class Truth(NamedTuple):
    """When the lanes were busy."""

    computed: list[tuple[float, float]]
    moved: list[tuple[float, float]]
    sent: list[tuple[int, float, float]]  # target rank, left, arrived


class _Lanes(EmulatedLanes):
    """Notes when all-to-alls are under way, too."""

    def __init__(self):
        super().__init__(one=False)
        self.moved = []

    def take(self, seconds, lane=Lane.COMPUTE):
        start = max(self.free[self.lane], time.monotonic())
        super().take(seconds, lane)
        if lane is not Lane.COMPUTE:
            self.moved.append((start, start + seconds))


class _Link(EmulatedLink):
    def __init__(self, sent, link, clock):
        super().__init__(link, clock)
        self.sent = sent

    def arrival(self, target_rank, size):
        left, arrives = self._clock(), super().arrival(target_rank, size)
        self.sent.append((target_rank, left, arrives))
        return arrives


def profiled(case: OverlapCase) -> tuple[RankRecord, Truth]:
    """This rank's record of a step, and the emulation's own."""
    group, lanes, sent = dist.group.WORLD, _Lanes(), []
    schedule = generate(case.schedule, group.size(), case.microbatches)
    where = schedule.placement
    stages = {}
    for stage in where.stages_of(group.rank()):
        rank = Rank(lanes)
        chunk = TimedChunk(case, rank, where.previous(stage) is None, where.next(stage) is None)
        stages[stage] = OverlappedStage(lanes, chunk, chunk, Execution(), lambda *_: case.pairing)
        rank.store = stages[stage].wgrad_store
        stages[stage].begin(forward_step, iter(()), False, case.microbatches, lambda: None)
    link = _Link(sent, Link(latency=case.hop_seconds), lanes.ready)
    runtime = Runtime(
        schedule,
        group.rank(),
        stages,
        DistributedTransport(group, where, CPU, link),
        shape=lambda message: SHAPE,
        dtype=torch.float32,
        device=CPU,
    )
    times = NodeTimes(lanes.ready)
    for stage in stages.values():
        stage.listen(times)
    dist.barrier()
    began = time.monotonic()
    record = runtime.step(times.mark)
    sleep_until(lanes.end())
    record.end = max(record.end, lanes.end())
    step = rank_step(1, record, times, (began, record.end, record.end), began, 0)
    return RankRecord(group.rank(), tuple(range(group.size())), "here", steps=(step,)), Truth(
        lanes.computed, lanes.moved, sent
    )
