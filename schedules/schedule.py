"""A schedule, and its lowering to messages.

A schedule lists only computation. ``lower`` derives the messages: each rank's list becomes a list of steps,
one per action, with what it receives before and what it sends after. A runtime needs nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from schedules.actions import Action, Kind
from schedules.placement import Placement


@dataclass(frozen=True)
class Schedule:
    """``actions[r]`` is what rank r does, in order. ``microbatches`` is M, counted over all paths.

    ``live_limit[r]``, where given, is the published bound on rank r's live chunks: (stage, micro-batch) pairs
    that have run F but not yet B or W. ``validate`` holds the schedule to it.

    ``posted`` is how many receives each rank has to keep posted per channel (see ``Message.channel``) so that
    the schedule cannot hang even where a send blocks its rank until it is received. A runtime whose sends do
    not block may use any pool.
    """

    name: str
    placement: Placement
    microbatches: int
    actions: tuple[tuple[Action, ...], ...]
    live_limit: tuple[int, ...] | None = None
    posted: int = 1

    @property
    def ranks(self) -> int:
        return self.placement.ranks

    def microbatches_of(self, stage: int) -> range:
        """The micro-batches that pass through the stage id: half of them for DualPipe, all of them
        otherwise."""
        return self.placement.microbatches_of(stage, self.microbatches)

    @cached_property
    def steps(self) -> tuple[tuple[ScheduleStep, ...], ...]:
        """The lowering, see ``lower``."""
        return tuple(lower_rank(self.placement, actions) for actions in self.actions)


class _Fields(NamedTuple):
    payload: Kind
    source: int
    target: int
    microbatch: int
    source_rank: int
    target_rank: int


class Message(_Fields):
    """An activation (``payload`` F) or the gradient of one (``payload`` B) going from stage id ``source`` on
    ``source_rank`` to stage id ``target`` on ``target_rank``.

    (channel, microbatch) identifies a message. Between two ranks there may be several channels (two ranks in
    a V have four), so the pair of ranks and the order of arrival do not.
    """

    __slots__ = ()

    # (source, target): an edge between stages, with its direction. First in, first out. In C, for the runtime asks
    # for it with every message.
    channel = property(itemgetter(1, 2))

    @property
    def send_text(self) -> str:
        """As torch.distributed.pipelining writes the sender's side: ``0SEND_F3``."""
        return f"{self.source}SEND_{self.payload.value}{self.microbatch}"

    @property
    def receive_text(self) -> str:
        """As torch.distributed.pipelining writes the receiver's side: ``1RECV_F3``."""
        return f"{self.target}RECV_{self.payload.value}{self.microbatch}"

    def __str__(self) -> str:
        what = "activation" if self.payload is Kind.F else "gradient"
        return f"{what} of micro-batch {self.microbatch} from stage {self.source} to stage {self.target}"


class ScheduleStep(NamedTuple):
    """An action with the messages that it needs and those that it produces.

    ``receives`` and ``sends`` hold at most one message per half; in an FB, those with payload F belong to the
    forward half and those with payload B to the backward half, so each half can start and send on its own.
    Between two stages on the same rank nothing is sent: the value is handed over inside the rank.
    """

    action: Action
    receives: tuple[Message, ...]
    sends: tuple[Message, ...]


def input_of(placement: Placement, part: Action) -> tuple[Kind, int] | None:
    """(payload, producing stage id) of what a plain action reads from another stage: the previous stage's F
    for F, the next stage's gradient for B and I, None for W and at the ends of a path."""
    if part.kind is Kind.F:
        source = placement.previous(part.stage)
        return None if source is None else (Kind.F, source)
    if part.kind in (Kind.B, Kind.I):
        source = placement.next(part.stage)
        return None if source is None else (Kind.B, source)
    return None


def output_of(placement: Placement, part: Action) -> tuple[Kind, int] | None:
    """(payload, consuming stage id) of what a plain action produces for another stage, or None."""
    if part.kind is Kind.F:
        target = placement.next(part.stage)
        return None if target is None else (Kind.F, target)
    if part.kind in (Kind.B, Kind.I):
        target = placement.previous(part.stage)
        return None if target is None else (Kind.B, target)
    return None


def lower_rank(placement: Placement, actions: Sequence[Action]) -> tuple[ScheduleStep, ...]:
    """The steps of one rank: its actions with the messages to and from other ranks."""
    rank_of = placement.rank_of
    steps = []
    for action in actions:
        receives, sends = [], []
        for part in action.parts:
            here = rank_of[part.stage]
            if (needed := input_of(placement, part)) and rank_of[needed[1]] != here:
                payload, source = needed
                receives.append(Message(payload, source, part.stage, part.microbatch, rank_of[source], here))
            if (produced := output_of(placement, part)) and rank_of[produced[1]] != here:
                payload, target = produced
                sends.append(Message(payload, part.stage, target, part.microbatch, here, rank_of[target]))
        steps.append(ScheduleStep(action, tuple(receives), tuple(sends)))
    return tuple(steps)


def lower(schedule: Schedule) -> tuple[tuple[ScheduleStep, ...], ...]:
    """The steps of every rank. Pure bookkeeping: an invalid schedule is lowered as it stands, so that
    ``validate`` can say what is wrong with it."""
    return schedule.steps
