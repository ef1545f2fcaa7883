"""What a simulation returns: times of actions and messages, and what can be read off them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from schedules.accounting import Interval, RankAccount, RankTimeline, Travel, Wait, account
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
    ``busy`` is the time spent computing. Causes are None where nothing had to be waited for.
    """

    action: Action
    start: float
    forward_end: float
    backward_start: float
    end: float
    busy: float
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
    def accounts(self) -> tuple[RankAccount, ...]:
        """Where the makespan goes, per rank (see ``accounting``)."""
        return tuple(account(rank, 0.0, self.makespan) for rank in rank_timelines(self))

    @cached_property
    def exposed(self) -> tuple[float, ...]:
        """Time during which the rank stood still and a message that it waited for was on its way, per
        rank."""
        return tuple(own.exposed.get("hop", 0.0) for own in self.accounts)

    @cached_property
    def hidden(self) -> tuple[float, ...]:
        """Time that messages to the rank travelled (each counted on its own) without its standing still."""
        return tuple(own.hidden.get("hop", 0.0) for own in self.accounts)

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


def rank_timelines(simulation: Simulation) -> list[RankTimeline]:
    """What every rank does, for ``accounting``."""
    travels = {
        (message.payload, message.target, message.microbatch): Travel(
            "hop", produced, arrives, message.send_text
        )
        for message, produced, _, arrives in simulation.transfers
    }
    return [_rank_timeline(timed, travels, simulation.costs.early) for timed in simulation.timeline]


def _rank_timeline(
    timeline: tuple[Timed, ...], travels: dict[tuple[Kind, int, int], Travel], early: bool
) -> RankTimeline:
    computing, waits, own = [], [], []
    starts: dict[Kind, list[float]] = {Kind.F: [], Kind.B: []}  # of forwards their ends
    free = 0.0
    for timed in timeline:
        # In an FB, F leads: until it starts the rank waits for the activation, and after it for the gradient.
        apart = early and timed.backward_start > timed.forward_end
        ends = (timed.start, timed.backward_start if apart else timed.start)
        for part, until in zip(timed.action.parts, ends, strict=False):
            if part.kind is Kind.W:
                continue
            payload = Kind.F if part.kind is Kind.F else Kind.B
            if travel := travels.get((payload, part.stage, part.microbatch)):
                own.append(travel)
                begins = timed.forward_end if apart and payload is Kind.B else free
                if begins < min(until, travel.end):
                    waits.append(Wait(begins, min(until, travel.end), travel))
            starts[payload].append(
                timed.forward_end if payload is Kind.F else timed.backward_start,
            )
        if apart:
            computing += [
                Interval(timed.start, timed.forward_end),
                Interval(timed.backward_start, timed.end),
            ]
        else:
            computing.append(Interval(timed.start, timed.end))
        free = timed.end
    return RankTimeline(
        computing,
        waits,
        own,
        free,
        min(starts[Kind.B], default=-math.inf),
        max(starts[Kind.F], default=math.inf),
    )
