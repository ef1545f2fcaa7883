"""What makes a schedule fit to run. Only a validated schedule is simulated, drawn or executed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from schedules.actions import Action, Kind
from schedules.deadlock import find_deadlock
from schedules.schedule import Message, Schedule, ScheduleStep, input_of, lower

Steps = Sequence[Sequence[ScheduleStep]]
Cause = Literal["placement", "work", "order", "message", "channel", "deadlock", "memory"]
Place = tuple[int, int]  # (rank, position in its list)


class Problem(NamedTuple):
    """One thing wrong: its cause, the rank, the action concerned (None: the rank as a whole), a full
    sentence."""

    cause: Cause
    rank: int
    action: Action | None
    text: str

    def __str__(self) -> str:
        return self.text


class InvalidSchedule(ValueError):
    """Carries every problem found; the message is one line."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"schedule {name}: {problems[0]}{more}")
        self.problems = problems


def validate(schedule: Schedule, steps: Steps | None = None) -> None:
    """Raise InvalidSchedule unless the schedule can run; ``problems`` says what is checked."""
    if found := problems(schedule, steps):
        raise InvalidSchedule(schedule.name, found)


def problems(schedule: Schedule, steps: Steps | None = None) -> list[Problem]:
    """Everything wrong with the schedule, or with ``steps`` (default: its lowering) as a way to run it.

    placement: an action on a rank that does not hold its stage, a stage or micro-batch that does not exist;
    work: an F, B, I or W missing or repeated; order: a use before its data on the same rank;
    message: one that is missing, repeated, unexpected or attached to another action; channel: received in
    another order than sent; deadlock: ranks waiting for one another under rendezvous; memory: more live
    chunks than allowed. Later checks assume the earlier ones, so they run only where those found nothing.
    """
    found = list(_placement(schedule))
    if found:
        return found
    where = _positions(schedule)
    found = [*_work(schedule, where), *_order(schedule, where)]
    if found:
        return found
    expected = lower(schedule)
    if steps is None:
        steps = expected
    else:
        found = list(_messages(expected, steps))
        if found:
            return found
    crossed = list(_channels(steps))
    return [*crossed, *([] if crossed else _deadlock(steps, schedule.posted)), *_memory(schedule)]


def _placement(schedule: Schedule) -> Iterator[Problem]:
    placement, rank_of = schedule.placement, schedule.placement.rank_of
    if len(schedule.actions) != schedule.ranks:
        text = f"{len(schedule.actions)} lists of actions for {schedule.ranks} ranks"
        yield Problem("placement", min(len(schedule.actions), schedule.ranks), None, text)
        return
    if schedule.microbatches < 1 or schedule.microbatches % len(placement.paths):
        text = f"{schedule.microbatches} micro-batches cannot be shared out to {len(placement.paths)} path(s)"
        yield Problem("placement", 0, None, text)
        return
    passing = [schedule.microbatches_of(stage) for stage in range(placement.stages)]
    for rank, actions in enumerate(schedule.actions):
        for action in actions:
            for part in action.parts:
                if not 0 <= part.stage < placement.stages:
                    text = f"stage {part.stage} does not exist, there are 0 .. {placement.stages - 1}"
                elif rank_of[part.stage] != rank:
                    text = f"stage {part.stage} lives on rank {rank_of[part.stage]}"
                elif part.microbatch not in (own := passing[part.stage]):
                    text = f"stage {part.stage} takes micro-batches {own.start} .. {own.stop - 1}"
                else:
                    continue
                yield Problem("placement", rank, action, f"rank {rank}: {action}: {text}")


def _positions(schedule: Schedule) -> dict[Action, list[Place]]:
    where: dict[Action, list[Place]] = defaultdict(list)
    for rank, actions in enumerate(schedule.actions):
        for position, action in enumerate(actions):
            for part in action.parts:
                where[part].append((rank, position))
    return where


def _work(schedule: Schedule, where: dict[Action, list[Place]]) -> Iterator[Problem]:
    for part, places in where.items():
        if len(places) > 1:
            at = ", ".join(str(position) for _, position in places)
            yield Problem("work", places[0][0], part, f"rank {places[0][0]}: {part} is repeated, at {at}")
    for stage, rank in enumerate(schedule.placement.rank_of):
        for m in schedule.microbatches_of(stage):
            F, B, I, W = (Action(kind, stage, m) for kind in (Kind.F, Kind.B, Kind.I, Kind.W))
            if F not in where:
                yield Problem("work", rank, F, f"rank {rank}: {F} is missing")
            if B in where:
                for extra in (I, W):
                    if extra in where:
                        yield Problem("work", rank, extra, f"rank {rank}: {extra} repeats part of {B}")
            elif I not in where and W not in where:
                yield Problem("work", rank, B, f"rank {rank}: {B}, or {I} and {W}, is missing")
            elif I not in where or W not in where:
                absent, present = (I, W) if I not in where else (W, I)
                yield Problem("work", rank, absent, f"rank {rank}: {absent} is missing, {present} is there")


def _order(schedule: Schedule, where: dict[Action, list[Place]]) -> Iterator[Problem]:
    """Uses before their data inside a rank. The halves of an FB run at the same time: neither may feed the
    other."""
    for rank, actions in enumerate(schedule.actions):
        for position, action in enumerate(actions):
            for part in action.parts:
                for needed in _needs_here(schedule, rank, part):
                    places = [p for kind in needed for p in where.get(kind, [])]
                    if places and places[0][1] >= position:
                        what = next(kind for kind in needed if kind in where)
                        relation = "overlaps" if places[0][1] == position else "runs before"
                        text = f"rank {rank}: {part} at {position} {relation} {what}, whose result it needs"
                        yield Problem("order", rank, action, text)


def _needs_here(schedule: Schedule, rank: int, part: Action) -> list[tuple[Action, ...]]:
    """The actions of the same rank whose results ``part`` uses, each with the kinds that could provide it."""
    needs: list[tuple[Action, ...]] = []
    if part.kind is Kind.W:
        needs.append((Action(Kind.I, part.stage, part.microbatch),))
    elif part.kind is not Kind.F:
        needs.append((Action(Kind.F, part.stage, part.microbatch),))
    source = input_of(schedule.placement, part)
    if source is not None and schedule.placement.rank_of[source[1]] == rank:
        kinds = (Kind.F,) if source[0] is Kind.F else (Kind.B, Kind.I)
        needs.append(tuple(Action(kind, source[1], part.microbatch) for kind in kinds))
    return needs


def _messages(expected: Steps, steps: Steps) -> Iterator[Problem]:
    for rank, (right, given) in enumerate(zip(expected, steps, strict=False)):
        if [s.action for s in right] != [s.action for s in given]:
            yield Problem("message", rank, None, f"rank {rank}: its steps are not its actions, in order")
            continue
        for due, found in zip(right, given, strict=True):
            for verb, wanted, listed in (
                ("receive", due.receives, found.receives),
                ("send", due.sends, found.sends),
            ):
                for message in wanted:
                    if message not in listed:
                        text = f"rank {rank}: {due.action} does not {verb} the {message}"
                        yield Problem("message", rank, due.action, text)
                for message in dict.fromkeys(listed):
                    if message not in wanted:
                        text = f"rank {rank}: {due.action} has no reason to {verb} the {message}"
                        yield Problem("message", rank, due.action, text)
                    elif listed.count(message) > 1:
                        text = f"rank {rank}: {due.action} would {verb} the {message} more than once"
                        yield Problem("message", rank, due.action, text)
    if len(steps) != len(expected):
        yield Problem("message", len(steps), None, f"steps for {len(steps)} ranks, not {len(expected)}")


def _channels(steps: Steps) -> Iterator[Problem]:
    sent: dict[tuple[int, int], list[Message]] = defaultdict(list)
    received: dict[tuple[int, int], list[tuple[Message, Action]]] = defaultdict(list)
    for rank_steps in steps:
        for step in rank_steps:
            for message in step.sends:
                sent[message.channel].append(message)
            for message in step.receives:
                received[message.channel].append((message, step.action))
    for channel, order in received.items():
        for (message, action), first in zip(order, sent[channel], strict=False):
            if message != first:
                rank = message.target_rank
                text = (
                    f"rank {rank}: {action} receives the {message}, but rank {message.source_rank} sends "
                    f"micro-batch {first.microbatch} first"
                )
                yield Problem("channel", rank, action, text)
                break


def live_chunks(actions: Sequence[Action]) -> list[int]:
    """Live chunks of a rank while each action runs: those with F begun and neither B nor W finished.

    In an FB the forward's chunk is added before the backward's is released.
    """
    live, counts = 0, []
    for action in actions:
        kinds = [part.kind for part in action.parts]
        live += Kind.F in kinds
        counts.append(live)
        live -= Kind.B in kinds or Kind.W in kinds
    return counts


def _deadlock(steps: Steps, posted: int) -> Iterator[Problem]:
    for rank, (position, message) in enumerate(find_deadlock(steps, posted)):
        if message is None:
            continue
        here = steps[rank]
        action = here[min(position, len(here) - 1)].action
        place = f"before {action}" if position < len(here) else f"after {action}"
        sending = message.source_rank == rank
        waits = f"rank {message.target_rank} to take" if sending else f"rank {message.source_rank} to send"
        text = f"rank {rank}: deadlock {place}, waiting for {waits} the {message}"
        yield Problem("deadlock", rank, action, text)


def _memory(schedule: Schedule) -> Iterator[Problem]:
    if schedule.live_limit is None:
        return
    for rank, (actions, limit) in enumerate(zip(schedule.actions, schedule.live_limit, strict=True)):
        for action, count in zip(actions, live_chunks(actions), strict=True):
            if count > limit:
                text = f"rank {rank}: {action} makes {count} live chunks, {limit} are allowed"
                yield Problem("memory", rank, action, text)
                break
