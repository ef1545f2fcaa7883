"""What a simulation returns: times of actions and messages, and what can be read off them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from schedules.actions import Action, Kind
from schedules.costs import Costs
from schedules.schedule import Message, Schedule


class Cause(NamedTuple):
    """What decided when something could start: a half (``half`` F or B) of the action at ``position`` in
    ``rank``'s list, ``hop`` units of time before."""

    rank: int
    position: int
    half: Kind
    hop: float


class Timed(NamedTuple):
    """An action with its times. In an FB the forward half runs from ``start`` to ``forward_end`` and the
    backward half from ``backward_start`` to ``end``; for other kinds both are the whole action.

    ``tail`` is the end of an FB that follows both its results.
    ``busy`` is the time spent computing, ``exposed`` the time that the rank stood still before or inside the
    action while a message that it needed was on its way. Causes are None where nothing had to be waited for.
    """

    action: Action
    start: float
    forward_end: float
    backward_start: float
    end: float
    busy: float
    exposed: float
    forward_cause: Cause | None
    backward_cause: Cause | None
    tail: float = 0.0

    def half_end(self, half: Kind) -> float:
        return self.forward_end if half is Kind.F else self.end - self.tail


class Transfer(NamedTuple):
    """A message: produced, first byte on the link, arrived."""

    message: Message
    produced: float
    leaves: float
    arrives: float


class PathStep(NamedTuple):
    """An action on the critical path; ``hop`` is the time of the message that led to it (0: the rank's own
    order)."""

    rank: int
    action: Action
    half: Kind
    end: float
    hop: float


@dataclass(frozen=True)
class Simulation:
    """``timeline[r][i]`` times the i-th action of rank r."""

    schedule: Schedule
    costs: Costs
    timeline: tuple[tuple[Timed, ...], ...]
    transfers: tuple[Transfer, ...]

    @cached_property
    def makespan(self) -> float:
        return max((timed[-1].end for timed in self.timeline if timed), default=0.0)

    @cached_property
    def busy(self) -> tuple[float, ...]:
        """Time spent computing, per rank."""
        return tuple(sum(t.busy for t in timed) for timed in self.timeline)

    @cached_property
    def bubble(self) -> tuple[float, ...]:
        """Time of the makespan not spent computing, per rank; exposed communication included."""
        return tuple(self.makespan - busy for busy in self.busy)

    @property
    def bubble_fraction(self) -> float:
        """The part of all ranks' time not spent computing."""
        return sum(self.bubble) / (self.makespan * len(self.bubble)) if self.makespan else 0.0

    @cached_property
    def exposed(self) -> tuple[float, ...]:
        """Time during which the rank stood still and a message that it waited for was on its way, per
        rank."""
        return tuple(sum(t.exposed for t in timed) for timed in self.timeline)

    @cached_property
    def hidden(self) -> tuple[float, ...]:
        """Time that messages to the rank travelled (each counted on its own) without its standing still."""
        travelled = [0.0] * len(self.timeline)
        for transfer in self.transfers:
            travelled[transfer.message.target_rank] += transfer.arrives - transfer.produced
        return tuple(total - exposed for total, exposed in zip(travelled, self.exposed, strict=True))

    def critical_path(self) -> list[PathStep]:
        """The chain of actions, first to last, each of which could start only when the one before it was done
        (and its message had arrived), and which ends at the makespan."""
        rank = max(
            (r for r, timed in enumerate(self.timeline) if timed), key=lambda r: self.timeline[r][-1].end
        )
        position, half = len(self.timeline[rank]) - 1, Kind.B
        path = []
        while True:
            timed = self.timeline[rank][position]
            cause = timed.forward_cause if half is Kind.F else timed.backward_cause
            hop = cause.hop if cause else 0.0
            path.append(PathStep(rank, timed.action, half, timed.half_end(half), hop))
            if cause is None:
                return path[::-1]
            rank, position, half, _ = cause
