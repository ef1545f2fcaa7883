"""When every action runs and every message travels, given costs.

Ranks run their actions in order. A message leaves when the half that produces it ends (in lockstep: when the
action ends), queues for its link, and arrives; the half that uses it waits for it. Receives are always
posted.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from schedules.actions import Action, Kind
from schedules.costs import Costs, StageCosts
from schedules.schedule import Message, Schedule, input_of, lower, output_of
from schedules.timeline import Cause, Simulation, Timed, Transfer


class _Value(NamedTuple):
    """When an input is there, and who produced it."""

    there: float
    cause: Cause | None


ROUNDING = 1e-9  # of F: less than this is no overlap
_AT_HAND = _Value(0.0, None)  # input data, the loss, and what only the rank's own order provides
_Values = dict[tuple[Kind, int, int], _Value]  # by payload, using stage, micro-batch


def simulate(schedule: Schedule, costs: Costs) -> Simulation:
    """Times of every action and message. The schedule has to be valid: an invalid one raises ValueError where
    no rank can go on. ValueError, too, if the costs are for another number of stages.
    """
    table = costs.per_stage_id(schedule.placement)
    steps, rank_of = lower(schedule), schedule.placement.rank_of
    timeline: list[list[Timed]] = [[] for _ in range(schedule.ranks)]
    transfers: list[Transfer] = []
    values: _Values = {}
    link_free: dict[tuple[int, int], float] = defaultdict(float)
    ready = list(range(schedule.ranks))
    while ready:
        rank = ready.pop()
        done = timeline[rank]
        while len(done) < len(steps[rank]):
            action, _, sends = steps[rank][len(done)]
            found = [_input(schedule, values, part) for part in action.parts]
            inputs = [value for value in found if value is not None]
            if len(inputs) < len(found):
                break
            timed = _run(action, inputs, done, rank, costs, table)
            position = len(done)
            done.append(timed)
            for part in action.parts:
                produced = output_of(schedule.placement, part)
                if produced is not None and rank_of[produced[1]] == rank:
                    payload, target = produced
                    at = _leaves(timed, payload, costs)
                    values[payload, target, part.microbatch] = _Value(at, Cause(rank, position, payload, 0.0))
            for message in sends:
                transfer = _send(message, _leaves(timed, message.payload, costs), costs, link_free)
                cause = Cause(rank, position, message.payload, transfer.arrives - transfer.produced)
                key = message.payload, message.target, message.microbatch
                values[key] = _Value(transfer.arrives, cause)
                transfers.append(transfer)
                ready.append(message.target_rank)
    for rank, done in enumerate(timeline):
        if len(done) < len(steps[rank]):
            raise ValueError(
                f"schedule {schedule.name} stops: rank {rank} cannot run {steps[rank][len(done)].action}"
            )
    return Simulation(schedule, costs, tuple(map(tuple, timeline)), tuple(transfers))


def _input(schedule: Schedule, values: _Values, part: Action) -> _Value | None:
    source = input_of(schedule.placement, part)
    return _AT_HAND if source is None else values.get((source[0], part.stage, part.microbatch))


def _leaves(timed: Timed, payload: Kind, costs: Costs) -> float:
    return timed.half_end(payload) if costs.early else timed.end


def _send(
    message: Message, produced: float, costs: Costs, link_free: dict[tuple[int, int], float]
) -> Transfer:
    ranks = message.source_rank, message.target_rank
    link = costs.between(*ranks)
    leaves = max(produced, link_free[ranks])
    link_free[ranks] = leaves + costs.message_bytes / link.bandwidth
    return Transfer(message, produced, leaves, link_free[ranks] + link.latency)


def _run(
    action: Action,
    inputs: list[_Value],
    done: list[Timed],
    rank: int,
    costs: Costs,
    table: tuple[StageCosts, ...],
) -> Timed:
    free = done[-1].end if done else 0.0
    before = Cause(rank, len(done) - 1, Kind.B, 0.0) if done else None
    if action.overlapped is not None:
        return _run_pair(action, action.overlapped, inputs, free, before, costs, table)
    (value,) = inputs
    start = max(free, value.there)
    took = getattr(table[action.stage], action.kind.value)
    cause = value.cause if value.there > free else before
    return Timed(action, start, start + took, start, start + took, took, cause, cause)


def _run_pair(
    action: Action,
    backward: Action,
    inputs: list[_Value],
    free: float,
    before: Cause | None,
    costs: Costs,
    table: tuple[StageCosts, ...],
) -> Timed:
    """FB. Early: F runs alone until B's gradient is there and at least ``lead`` of it is done; what is left
    of F then runs overlapped with as large a part of B, and the rest of B alone."""
    activation, gradient = inputs
    f, b, tail = table[action.stage].F, table[backward.stage].B, table[backward.stage].tail
    overlapped = f + b - min(saved(table[action.stage]), saved(table[backward.stage]))
    start = max(free, activation.there)
    cause = activation.cause if activation.there > free else before
    if not costs.early:
        if gradient.there > start:
            start, cause = gradient.there, gradient.cause
        end = start + overlapped
        return Timed(action, start, end, start, end, overlapped, cause, cause)
    join = max(start + costs.lead * f, gradient.there)
    late = gradient.there > start + costs.lead * f
    alone = (join - start) / f if f else 1.0
    if alone > 1 - ROUNDING:
        forward_end, backward_start = start + f, max(join, start + f)
        end = backward_start + b
        busy = f + b
        late = late and backward_start > forward_end
    else:
        forward_end, backward_start = join + (1 - alone) * overlapped, join
        end = forward_end + alone * b
        busy = end - start
        forward_end = min(forward_end, end - tail)
    return Timed(
        action,
        start,
        forward_end,
        backward_start,
        end,
        busy,
        cause,
        gradient.cause if late else cause,
        tail,
    )


def saved(stage: StageCosts) -> float:
    """What overlapping a stage's F with its own B saves."""
    return stage.F + stage.B - stage.FB
