"""What a rank's host enqueues on a GPU in one step: the real runtime, lanes and transport over emulated streams."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import torch

from hcmegatron.model.nodes import Lane
from hcmegatron.pipeline.lanes import Lanes, StreamOrder
from schedules.generators import generate
from schedules.generators.interleaved import interleaved
from schedules.node_costs import ROLES, pair_turns
from schedules.runtime import Runtime, torch_distributed
from schedules.runtime.torch_distributed import DistributedTransport, channels_of
from schedules.schedule import Schedule
from tests.emulated import streams
from tests.emulated.nccl import OnStreams
from tests.emulated.queues import left_over
from tests.emulated.streams import DEVICE, Item

CUDA = torch.device("cuda")  # which the CPU adapter answers for
LANES = {
    "attention": [Lane.COMPUTE],
    "dispatch": [Lane.COMMUNICATION],
    "experts": [Lane.COMPUTE],
    "combine": [Lane.COMMUNICATION, Lane.HIGH_PRIORITY],
}


class Stage:
    """A stage of one kernel an action."""

    def __init__(self, first: bool, last: bool) -> None:
        self.output, self.input_grad = (None if end else torch.zeros(1) for end in (last, first))

    def forward(self, microbatch, input):
        DEVICE.current[-1].tick()
        return self.output

    def backward(self, microbatch, output_grad):
        DEVICE.current[-1].tick()
        return self.input_grad

    backward_input = backward

    def backward_weight(self, microbatch):
        DEVICE.current[-1].tick()


class Overlapping(Stage):
    """Whose FB goes over the lanes as that of a chunk with one layer of experts does (pipeline/overlap.py)."""

    def __init__(self, lanes: Lanes, first: bool, last: bool) -> None:
        super().__init__(first, last)
        self.lanes = lanes

    def forward_backward(
        self, microbatch, input, backward_stage, backward_microbatch, wait_grad, send_output, send_input_grad
    ):
        chains = {"F": StreamOrder(), "I": StreamOrder()}
        turns = pair_turns([set(ROLES)], [set(ROLES)], 0, 1)
        last = max(index for index, turn in enumerate(turns) if turn.phase == "I")
        joined = False
        for index, turn in enumerate(turns):
            if turn.phase != "F" and not joined:
                wait_grad()
                joined = True
            if turn.phase == "W":
                DEVICE.current[-1].tick()
                continue
            lanes = LANES[turn.role]
            for lane in lanes if turn.phase == "F" else reversed(lanes):
                with self.lanes.on(lane, chains[turn.phase]):
                    DEVICE.current[-1].tick()
            if index == last:
                with self.lanes.on(Lane.COMPUTE, chains["I"]):
                    pass
                send_input_grad(backward_stage.input_grad)
        with self.lanes.on(chains["F"].lane, chains["F"]):
            send_output(self.output)
        with self.lanes.on(Lane.COMPUTE, chains["F"]):
            pass


def enqueued(schedule: Schedule, rank: int, overlap: bool, late: bool) -> list[Item]:
    """By one step of the rank, after one step before it."""
    where = schedule.placement
    DEVICE.forget_streams()
    build = partial(Overlapping, Lanes(CUDA)) if overlap else Stage
    stages = {
        stage: build(where.previous(stage) is None, where.next(stage) is None)
        for stage in where.stages_of(rank)
    }
    group = SimpleNamespace(size=lambda: schedule.ranks, rank=lambda: rank)
    usual = torch_distributed._channel_groups
    torch_distributed._channel_groups = lambda *_: {
        channel: OnStreams(None, channel, 0) for channel in channels_of(where, rank)
    }
    try:
        transport = DistributedTransport(group, where, CUDA)
    finally:
        torch_distributed._channel_groups = usual
    transport.receives_occupy_device = late
    runtime = Runtime(
        schedule, rank, stages, transport, shape=lambda message: (1,), dtype=torch.float32, device=CUDA
    )
    runtime.step()
    streams.reset()
    runtime.step()
    return list(DEVICE.log)


def hangs(
    cases: list[tuple[str, int, int, bool]], queues: list[int], late: bool = True
) -> list[tuple[int, list[int]]]:
    """Per case (schedule, ranks, chunks of interleaved, overlap): the most streams of a rank, and the numbers of
    queues with which it hangs. late: receives are posted as they are on a GPU."""
    streams.install()
    found = []
    for name, ranks, chunks, overlap in cases:
        microbatches = 3 * ranks
        schedule = (
            interleaved(ranks, microbatches, chunks)
            if name == "interleaved"
            else generate(name, ranks, microbatches)
        )
        logs = [enqueued(schedule, rank, overlap, late) for rank in range(ranks)]
        most = max(len({item.stream for item in log if item.stream}) for log in logs)
        found.append((most, [number for number in queues if left_over(logs, number)]))
    return found
