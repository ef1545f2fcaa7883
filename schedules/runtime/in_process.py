"""All ranks in one process, one thread each: for tests, and for profiling a pipeline on a single GPU."""

from __future__ import annotations

import faulthandler
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from schedules.costs import Link
from schedules.runtime.gpu import GPU
from schedules.runtime.link import EmulatedLink, sleep_until
from schedules.runtime.p2p import PipelineError
from schedules.runtime.record import Record
from schedules.runtime.runtime import Runtime
from schedules.runtime.transport import Pending, Transport
from schedules.schedule import Message

_Key = tuple[tuple[int, int], int]  # channel, micro-batch


class Aborted(RuntimeError):
    """Another rank has failed, or the ranks were told to stop."""


class InProcessWorld:
    """The mailboxes of ``ranks`` ranks. ``transport(rank)`` is what a rank's Runtime gets."""

    def __init__(self, ranks: int, link: Link | None = None) -> None:
        self.ranks, self.link = ranks, link
        self.aborted: str | None = None
        self._changed = [threading.Condition() for _ in range(ranks)]
        self._letters: dict[_Key, deque[_Letter]] = defaultdict(deque)
        self._streams: dict[int, torch.cuda.Stream] = {}

    def transport(self, rank: int) -> Transport:
        return _InProcessTransport(self, rank)

    def stream(self, rank: int) -> AbstractContextManager[None]:
        """What the rank's thread runs under."""
        if not GPU.present():
            return nullcontext()
        return GPU.on(self._streams.setdefault(rank, GPU.stream()))

    def abort(self, reason: str) -> None:
        """Every wait, now and later, raises Aborted with the reason."""
        self.aborted = reason
        for changed in self._changed:
            with changed:
                changed.notify_all()

    def _post(self, message: Message, letter: _Letter) -> None:
        changed = self._changed[message.target_rank]
        with changed:
            self._letters[message.channel, message.microbatch].append(letter)
            changed.notify_all()

    def _collect(self, message: Message) -> _Letter:
        changed = self._changed[message.target_rank]
        with changed:
            box = self._letters[message.channel, message.microbatch]
            changed.wait_for(lambda: box or self.aborted)
            if self.aborted:
                raise Aborted(self.aborted)
            return box.popleft()


def step_all(
    world: InProcessWorld, runtimes: Sequence[Runtime], limit: float, directory: Path
) -> list[Record]:
    """One step of every rank, each on a thread (on CUDA: a stream) of its own.

    If a rank fails, the others stop waiting, and its exception is raised with everybody's position as a note.
    PipelineError if no rank has made progress for ``limit`` seconds; the stacks are then in ``stacks.txt`` in
    ``directory``. A rank that is stuck inside a stage cannot be stopped: its thread is left behind.
    """
    records: dict[int, Record] = {}
    errors: dict[int, Exception] = {}

    def run(rank: int) -> None:
        try:
            with world.stream(rank):
                records[rank] = runtimes[rank].step()
        except Exception as error:
            errors[rank] = error
            world.abort(f"rank {rank} failed: {error}")

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world.ranks)]
    for thread in threads:
        thread.start()
    stalled = False
    while not stalled and any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(min(0.1, limit / 10))
        positions = [runtime.position for runtime in runtimes]
        stalled = min((p.idle for p in positions if p.active), default=0.0) > limit
    where = "\n".join(f"  {runtime.position}" for runtime in runtimes)
    if stalled:
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "stacks.txt", "w") as stacks:
            faulthandler.dump_traceback(stacks, all_threads=True)
        world.abort(f"no progress for {limit} s")
        raise PipelineError(f"no rank has made progress for {limit} s\n{where}")
    if errors:
        first = next((error for error in errors.values() if not isinstance(error.__cause__, Aborted)), None)
        first = first or next(iter(errors.values()))
        first.add_note(where)
        raise first
    return [records[rank] for rank in range(world.ranks)]


class _Letter(NamedTuple):
    tensor: Tensor
    arrival: float
    computed: torch.cuda.Event | None


class _InProcessTransport(Transport):
    def __init__(self, world: InProcessWorld, rank: int) -> None:
        self.world, self.rank = world, rank
        self._link = EmulatedLink(world.link) if world.link else None

    def send(self, message: Message, tensor: Tensor) -> Pending:
        arrival = self._link.arrival(message.target_rank, tensor.nbytes) if self._link else 0.0
        computed = GPU.current_stream().record_event() if GPU.holds(tensor) else None
        self.world._post(message, _Letter(tensor, arrival, computed))
        return _Sent()

    def receive(self, message: Message, buffer: Tensor) -> Pending:
        return _Receiving(self.world, message, buffer)


class _Sent:
    """The letter keeps the tensor for as long as it is needed."""

    def wait(self) -> None:
        return


class _Receiving(NamedTuple):
    world: InProcessWorld
    message: Message
    buffer: Tensor

    def wait(self) -> None:
        tensor, arrival, computed = self.world._collect(self.message)
        sleep_until(arrival)
        if computed is not None:
            stream = GPU.current_stream()
            stream.wait_event(computed)
            tensor.record_stream(stream)
        self.buffer.copy_(tensor, non_blocking=True)
