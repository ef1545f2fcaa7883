"""The schedule as a profiled step ran it: what every rank recorded of it in profile/rank-*.json."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hcmegatron.profiling.rank_step import Ran, RankRecord, RankStep
from hcmegatron.profiling.timeline import StepTimeline, joined
from schedules.actions import Action, Kind
from schedules.costs import Costs
from schedules.schedule import Schedule
from schedules.timeline import Simulation, Timed


def timeline(records: Sequence[RankRecord], step: int | None) -> StepTimeline | None:
    """The profiled step of all ranks on one clock; None where not all of them have it on record.

    Args:
        step: of training; None: the last one on record.
    """
    try:
        numbers = [each.step for each in records[0].steps]
        index = len(numbers) - 1 if step is None else numbers.index(step)
        return joined(records, index)
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
    ):  # ranks, steps or messages are missing
        return None


def executed(found: StepTimeline, schedule: Schedule) -> Simulation | None:
    """The step as a simulation of `schedule` in seconds, for drawing: of several pipelines the first. None where it is
    of another schedule."""
    ran: dict[int, RankStep] = {}
    for record, own in zip(found.records, found.own, strict=True):
        ran.setdefault(record.pipeline_rank, own)
    if set(ran) != set(range(schedule.ranks)):
        return None
    begin = min(each.start for own in ran.values() for each in own.actions)
    rows = []
    for rank, actions in enumerate(schedule.actions):
        at: defaultdict[int, list[Ran]] = defaultdict(list)
        for each in ran[rank].actions:
            at[each.position].append(each)
        if set(at) != set(range(len(actions))):
            return None
        rows.append(tuple(_timed(action, at[position], begin) for position, action in enumerate(actions)))
    return Simulation(schedule, Costs(), tuple(rows), ())


def _timed(action: Action, ran: list[Ran], begin: float) -> Timed:
    """Of a pair the forward begins first: its backward joins it."""
    times = sorted((each.start - begin, each.end - begin) for each in ran)
    first, last = times[0], times[-1]
    start, end = first[0], max(first[1], last[1])
    pair = action.kind is Kind.FB and len(ran) == 2
    return Timed(
        action=action,
        start=start,
        forward_end=first[1] if pair else end,
        backward_start=last[0] if pair else start,
        end=end,
        busy=end - start,
        forward_cause=None,
        backward_cause=None,
    )
