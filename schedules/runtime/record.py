"""What happened in a step: when every part of every action ran, and what was in memory at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from schedules.actions import Action, Kind
from schedules.runtime.gpu import GPU
from schedules.runtime.program import Peaks, Program
from schedules.schedule import Message

Mark = float | torch.cuda.Event
Sent = tuple[Message, Mark, int]  # when, and how many bytes
Waited = tuple[Message, Mark, Mark]  # from, to


class RecordedAction(NamedTuple):
    """A plain action (an FB gives two events) at ``position`` in the rank's list. Times are in seconds: on
    CPU the monotonic clock, which all processes of a machine share; on CUDA since the step's first event on
    this device. ``waited`` is what of the time before ``start`` the host spent waiting for the message (on
    CUDA the stream waits instead, and the gap between the events shows it)."""

    position: int
    action: Action
    waited: float
    start: float
    end: float


class Record:
    """One step of one rank. Recording costs a few microseconds an action.

    ``sends`` and ``waits``: of its messages (see P2PChannels), by the host's clock where ``step`` was not told another.
    """

    def __init__(self, program: Program, device: torch.device) -> None:
        self.rank = program.rank
        self.most_buffers = 0  # receive buffers posted, or filled and still needed, at any time
        self.start = time.monotonic()  # of the step, for the host
        self.end = self.start
        self.sends: list[Sent] = []
        self.waits: list[Waited] = []
        self._waited_last = 0.0
        self._ops = program.ops
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[int, Action, float, Mark, Mark]] = []
        # Without a function of their own, since Python's are dear between two actions (see BufferPool.take).
        self.mark: Callable[[], Mark] = GPU.mark if self._cuda else time.monotonic
        self.add = self._marks.append  # (position, part, waited, start, end), see Event

    def finish(self, waited: float, most_buffers: int) -> None:
        """``waited``: for the last messages to leave."""
        self._waited_last, self.most_buffers = waited, most_buffers
        self.end = time.monotonic()

    @property
    def actions(self) -> tuple[Action, ...]:
        """What was executed, in order, as the schedule writes it."""
        positions = dict.fromkeys(position for position, *_ in self._marks)
        return tuple(self._ops[position].action for position in positions)

    @property
    def peaks(self) -> Peaks:
        """Most at any time, by what was executed."""
        closing = {part.action for op in self._ops for part in op.parts if part.is_last_use}
        live = pending = most_live = most_pending = 0
        for _, part, *_ in self._marks:
            live += part.kind is Kind.F
            pending += (part.kind is Kind.I) - (part.kind is Kind.W)
            most_live, most_pending = max(most_live, live), max(most_pending, pending)
            live -= part in closing
        return Peaks(most_live, most_pending, self.most_buffers)

    def events(self) -> list[RecordedAction]:
        """In order of their ends. On CUDA this waits for the device."""
        if self._cuda:
            GPU.synchronize()
        return [
            RecordedAction(position, part, waited, self.at(start), self.at(end))
            for position, part, waited, start, end in self._marks
        ]

    def at(self, mark: Mark) -> float:
        """Seconds, as the events count them. On CUDA the device has to be done with what was marked."""
        if isinstance(mark, float):
            return mark
        first = self._marks[0][3]
        assert not isinstance(first, float)  # one clock marks all of a step
        milliseconds: float = first.elapsed_time(mark)
        return milliseconds * 1e-3

    def source(self, event: RecordedAction) -> int | None:
        """The rank whose message a part needed; None where it needed none."""
        (part,) = [part for part in self._ops[event.position].parts if part.action == event.action]
        return None if part.receive is None else part.receive.source_rank

    def gaps(self) -> list[float]:
        """Host seconds spent neither in a stage nor waiting: before every event, and after the last one.
        Meaningful on CPU, where no stage overlaps by itself."""
        events = self.events()
        ends = [self.start, *(event.end for event in events)]
        starts = [*(event.start - event.waited for event in events), self.end - self._waited_last]
        return [start - end for start, end in zip(starts, ends, strict=True)]
