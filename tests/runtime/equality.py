"""A schedule that was executed, against one process."""

import pytest
import torch

from schedules import generate
from schedules.costs import Costs
from schedules.runtime import InProcessWorld, step_all
from schedules.runtime.program import compile_rank
from tests.runtime.stages import CPU, BlockStage, reference, stages_of
from tests.runtime.workers import result, runtime

PRELOAD = ("torch.distributed", "tests.runtime.workers")
SIZES = {2: 7, 4: 11}  # micro-batches by number of ranks: multiples of nothing


def lengths_for(name, ranks):
    """One length per micro-batch, all different. DualPipe takes even numbers of micro-batches only."""
    microbatches = SIZES[ranks] + (name == "dualpipe")
    return [3 + (5 * m) % 13 for m in range(microbatches)]


def check(schedule, lengths, results, late=False, shared=False):
    """shared: buffers are the senders' slots, who may be ahead of what is posted."""
    expected_losses, expected_gradients = reference(schedule.placement.model_stages, lengths)
    found_losses = {m: loss for own in results for m, loss in own.losses.items()}
    assert found_losses == pytest.approx(expected_losses, rel=1e-13)
    for number, expected in enumerate(expected_gradients):
        copies = [grads for own in results for stage, grads in own.gradients if stage == number]
        assert len(copies) == len(schedule.placement.paths)
        for found, wanted in zip(zip(*copies, strict=True), expected, strict=True):
            torch.testing.assert_close(sum(found).cpu(), wanted, rtol=1e-12, atol=1e-14)
    for rank, own in enumerate(results):
        assert own.actions == schedule.actions[rank]
        program = compile_rank(schedule, rank, Costs() if late else None)
        peaks, ahead = program.peaks, sum(program.depths[channel] + 1 for channel in program.receives)
        assert own.peaks == peaks
        assert own.buffers <= peaks.buffers + shared * ahead
        assert own.peaks.live <= schedule.live_limit[rank]


def check_in_process(name, ranks, directory, device=CPU, kind=BlockStage, late=False):
    """All ranks on threads of this process, on CUDA each on a stream of its own."""
    lengths = lengths_for(name, ranks)
    schedule = generate(name, ranks, len(lengths))
    world = InProcessWorld(ranks)
    stages = [stages_of(schedule, rank, lengths, device, kind) for rank in range(ranks)]
    transports = [world.transport(rank) for rank in range(ranks)]
    for transport in transports:
        transport.receives_occupy_device = late
    runtimes = [runtime(schedule, r, stages[r], transports[r], lengths, device=device) for r in range(ranks)]
    if device.type == "cuda":
        torch.cuda.synchronize()  # weights are made on the default stream
    records = step_all(world, runtimes, limit=20, directory=directory)
    if device.type == "cuda":
        torch.cuda.synchronize()
    check(schedule, lengths, [result(*own) for own in zip(stages, runtimes, records, strict=True)], late)
