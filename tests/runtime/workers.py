"""What the ranks of the runtime's tests run."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from schedules import Action, Schedule, generate
from schedules.costs import Link
from schedules.runtime import (
    DistributedTransport,
    Record,
    Runtime,
    SharedMemoryTransport,
    Transport,
    Watchdog,
)
from schedules.runtime.program import Peaks
from tests.runtime.stages import CPU, DTYPE, WIDTH, gradients, losses, shape_for, stages_of


class Result(NamedTuple):
    losses: dict[int, float]
    gradients: list
    actions: tuple[Action, ...]
    peaks: Peaks
    buffers: int


def runtime(schedule: Schedule, rank: int, stages, transport, lengths, **options) -> Runtime:
    options = {"device": CPU} | options
    return Runtime(schedule, rank, stages, transport, shape=shape_for(lengths), dtype=DTYPE, **options)


def transport_of(shared: bool, group, placement, link: Link | None = None) -> Transport:
    if shared:
        return SharedMemoryTransport(group, placement, link)
    return DistributedTransport(group, placement, CPU, link)


def result(stages, runtime: Runtime, record: Record) -> Result:
    return Result(losses(stages), gradients(stages), record.actions, record.peaks, runtime._pool.size)


def train(
    cases: list[tuple[str, list[int]]], steps: int, link: Link | None = None, shared: bool = False
) -> list[Result]:
    """Each case is a schedule's name and the lengths of its micro-batches. Gradients are those of the last
    step alone. shared: through shared memory."""
    group = dist.group.WORLD
    answers = []
    for name, lengths in cases:
        schedule = generate(name, group.size(), len(lengths))
        stages = stages_of(schedule, group.rank(), lengths)
        transport = transport_of(shared, group, schedule.placement, link)
        own = runtime(schedule, group.rank(), stages, transport, lengths)
        for _ in range(steps):
            for stage in stages.values():
                for weight in stage.weights:
                    weight.grad = None
            record = own.step()
        answers.append(result(stages, own, record))
    return answers


class _Misbehaving:
    """A stage that does something else in one of its forwards."""

    def __init__(self, stage, microbatch: int, act: Callable[[], None]) -> None:
        self._stage, self._microbatch, self._act = stage, microbatch, act

    def __getattr__(self, name):
        return getattr(self._stage, name)

    def forward(self, microbatch, input):
        if microbatch == self._microbatch:
            self._act()
        return self._stage.forward(microbatch, input)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stall() -> None:
    time.sleep(1000)


def _hold() -> None:
    ctypes.PyDLL(None).sleep(1000)  # in C, without giving up the interpreter lock


def _fail() -> None:
    raise ArithmeticError("no more numbers")


def disturb(
    how: str,
    culprit: int,
    limit: float,
    directory: Path,
    tcp_port: int | None,
    device: torch.device = CPU,
    shared: bool = False,
) -> None:
    """A few steps, in the second of which rank ``culprit`` does not do its part; then a barrier, as a trainer
    has in its optimizer. Returns only if nothing ends the process."""
    group = dist.group.WORLD
    rank = group.rank()
    if tcp_port is None:
        store = dist.FileStore(str(directory / "store"), group.size())
    else:
        store = dist.TCPStore("127.0.0.1", tcp_port, group.size(), is_master=rank == 0)
    watchdog = Watchdog(store, rank, group.size(), limit, directory)
    lengths = [3] * 12
    schedule = generate("dualpipev", group.size(), len(lengths))
    stages = stages_of(schedule, rank, lengths)
    if shared:
        transport = SharedMemoryTransport(group, schedule.placement)
    else:
        transport = DistributedTransport(group, schedule.placement, device)
    own = runtime(schedule, rank, stages, transport, lengths, watchdog=watchdog, device=device)
    own.step()
    time.sleep(3 * limit / 10)  # for positions to reach the store
    if rank == culprit and how == "cut":
        own.program = dataclasses.replace(own.program, ops=own.program.ops[:20])
    elif rank == culprit:
        act = {"kill": _kill, "stall": _stall, "hold": _hold, "fail": _fail}[how]
        own._stages[rank] = _Misbehaving(stages[rank], 7, act)
    os.write(1, f"begins {time.monotonic()}\n".encode())
    own.step()
    dist.barrier()


class _Nothing:
    """A stage that costs nothing."""

    def __init__(self, first: bool, last: bool) -> None:
        self._output, self._input_grad = (
            None if end else torch.zeros(4, WIDTH, dtype=DTYPE) for end in (last, first)
        )

    def forward(self, microbatch, input):
        return self._output

    def backward(self, microbatch, output_grad):
        return self._input_grad

    backward_input = backward

    def backward_weight(self, microbatch):
        pass


def overhead(name: str, microbatches: int, steps: int, shared: bool = False) -> list[float]:
    """Seconds of processor time per action, for every step."""
    group = dist.group.WORLD
    schedule = generate(name, group.size(), microbatches)
    placement = schedule.placement
    stages = {
        stage: _Nothing(placement.previous(stage) is None, placement.next(stage) is None)
        for stage in placement.stages_of(group.rank())
    }
    transport = transport_of(shared, group, placement)
    own = runtime(schedule, group.rank(), stages, transport, [4] * microbatches)
    seconds = []
    for _ in range(steps):
        dist.barrier()
        before = time.thread_time()
        record = own.step()
        seconds.append((time.thread_time() - before) / len(record.actions))
    return seconds
