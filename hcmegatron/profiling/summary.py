"""A profile's figures (docs/profile.md), of all ranks. Pure, no torch. Milliseconds a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

from hcmegatron.profiling.critical_path import critical_path
from hcmegatron.profiling.measured_costs import durations, measured_costs
from hcmegatron.profiling.rank_step import FORMAT, RankRecord, RankStep
from hcmegatron.profiling.timeline import StepTimeline, joined
from hcmegatron.profiling.what_if import what_if
from schedules.accounting import KINDS, Interval, RankAccount, RankTimeline, idle, length
from schedules.actions import Kind
from schedules.schedule import Schedule
from schedules.simulate import simulate
from schedules.timeline import Simulation

LANES = ("compute", "high priority", "communication", "messages")
MOST_WAITS = 10


def summarise(
    records: Sequence[RankRecord], schedule: Schedule, lockstep: bool = False, timed: int | None = None
) -> dict[str, Any]:
    """The figures of the step whose length is the median of those profiled: they belong together, and add up.

    Args:
        records: of all ranks, in order.
        timed: how many of the steps count, from the first; None: all.
    """
    steps = [joined(records, index) for index in range(len(records[0].steps))]
    counted = sorted(steps[:timed], key=lambda step: step.seconds)
    timeline = counted[(len(counted) - 1) // 2]
    accounts = timeline.accounts()
    measured = measured_costs([timeline], schedule)
    simulation = simulate(schedule, measured.costs(lockstep))
    reduction = min(own.exposed.get("reduction", 0.0) for own in accounts)
    changes = what_if(schedule, measured, reduction, lockstep)
    return {
        "format": FORMAT,
        "steps": [step.step for step in steps],
        "steps_ms": [_ms(step.seconds) for step in steps],
        "step": timeline.step,
        "ranks": len(records),
        "schedule": schedule.name,
        "pipeline": schedule.ranks,
        "microbatches": schedule.microbatches,
        "clock_uncertainty_ms": _ms(max(record.uncertainty for record in records)),
        "step_ms": _ms(timeline.seconds),
        "simulated_step_ms": _ms(simulation.makespan + measured.outside),
        "outside_pipeline_ms": _ms(measured.outside),
        "host_per_action_ms": _ms(measured.host),
        "hop_ms": _ms(measured.link.latency),
        "per_rank": [
            _of_rank(*each)
            for each in zip(timeline.records, timeline.own, timeline.ranks, accounts, strict=True)
        ],
        "communication": _communication(timeline, accounts),
        "waited_for": _waited_for(timeline, accounts),
        "actions": _actions(timeline, schedule, simulation),
        "critical_path": [
            {
                "rank": at.rank,
                "action": at.action,
                "start_ms": _ms(at.start - timeline.begin),
                "ms": _ms(at.seconds),
            }
            for at in critical_path(timeline)
        ],
        "what_if": [{"change": change.what, "step_ms": _ms(change.seconds)} for change in changes],
    }


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 6)


def _of_rank(record: RankRecord, step: RankStep, rank: RankTimeline, own: RankAccount) -> dict[str, Any]:
    return {
        "rank": record.rank,
        "pipeline_rank": record.pipeline_rank,
        "compute_ms": _ms(own.computing),
        "bubble_ms": {cause: _ms(seconds) for cause, seconds in own.bubble.items()},
        "lanes": _lanes(step, rank),
    }


def _lanes(step: RankStep, rank: RankTimeline) -> dict[str, dict[str, float]]:
    """Of every lane how long it was busy, and what of that lay beside computation on another lane."""
    by_lane: dict[str, list[Interval]] = {lane: [] for lane in LANES}
    for node in step.nodes:
        by_lane[node.lane].append(Interval(node.start, node.end))
    by_lane["messages"] = [Interval(t.start, t.end) for t in rank.travels if t.kind == "hop"]
    # Computation that is in no node, or where nodes are not known, is on the compute lane too.
    others = [*by_lane["high priority"]]
    free = idle(others, step.begin, step.end)
    by_lane["compute"] += _common(rank.computing, free)
    found = {}
    for lane, busy in by_lane.items():
        beside = [
            interval for other in ("compute", "high priority") if other != lane for interval in by_lane[other]
        ]
        merged = _merged(busy)
        hidden = length(_common(merged, _merged(beside)))
        found[lane] = {
            "busy_ms": _ms(length(merged)),
            "hidden_ms": _ms(hidden),
            "exposed_ms": _ms(length(merged) - hidden),
        }
    return found


def _merged(intervals: Sequence[Interval]) -> list[Interval]:
    """The same time as intervals that do not overlap, in order."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1].end:
            found[-1] = Interval(found[-1].start, max(end, found[-1].end))
        elif end > start:
            found.append(Interval(start, end))
    return found


def _common(first: Sequence[Interval], second: Sequence[Interval]) -> list[Interval]:
    """What lies in both."""
    a, b = _merged(first), _merged(second)
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        start, end = max(a[i].start, b[j].start), min(a[i].end, b[j].end)
        if start < end:
            found.append(Interval(start, end))
        if a[i].end < b[j].end:
            i += 1
        else:
            j += 1
    return found


def _communication(timeline: StepTimeline, accounts: Sequence[RankAccount]) -> dict[str, dict[str, float]]:
    """By kind, over all ranks: exposed and hidden time, and bytes that they received or took part in."""
    found: dict[str, dict[str, float]] = {}
    moved: dict[str, int] = defaultdict(int)
    for step in timeline.own:
        moved["hop"] += sum(sent.bytes for sent in step.sends)
        moved["reduction"] += step.reduced_bytes
        for node in step.nodes:
            if node.lane == "communication":
                moved[node.node] += 2 * node.bytes  # its backward moves the same
    for kind in KINDS:
        exposed = sum(own.exposed.get(kind, 0.0) for own in accounts)
        hidden = sum(own.hidden.get(kind, 0.0) for own in accounts)
        if exposed or hidden or moved[kind]:
            found[kind] = {"hidden_ms": _ms(hidden), "exposed_ms": _ms(exposed), "bytes": moved[kind]}
    return found


def _waited_for(timeline: StepTimeline, accounts: Sequence[RankAccount]) -> list[dict[str, Any]]:
    """What was waited for longest while it was on its way, by rank."""
    found = [
        {"rank": record.rank, "what": what, "ms": _ms(seconds)}
        for record, own in zip(timeline.records, accounts, strict=True)
        for what, seconds in own.waited_for.items()
        if seconds > 0
    ]
    return sorted(found, key=lambda entry: -entry["ms"])[:MOST_WAITS]


def _actions(timeline: StepTimeline, schedule: Schedule, simulation: Simulation) -> list[dict[str, Any]]:
    """By kind and model stage, medians of what an action took, with what it stood still for within it; measured, and as
    the simulator has it with measured costs."""
    where = schedule.placement
    measured: dict[tuple[Kind, int], list[float]] = defaultdict(list)
    simulated: dict[tuple[Kind, int], list[float]] = defaultdict(list)
    for parts, seconds in durations(timeline, still=True):
        kind = Kind.FB if len(parts) == 2 else parts[0].kind
        measured[kind, where.model_stage(parts[0].stage)].append(seconds)
    for timed in (one for own in simulation.timeline for one in own):
        stage = where.model_stage(timed.action.stage)
        simulated[timed.action.kind, stage].append(timed.end - timed.start)
        if timed.action.overlapped and timed.backward_start >= timed.forward_end:
            simulated[Kind.F, stage].append(timed.forward_end - timed.start)
            back = where.model_stage(timed.action.overlapped.stage)
            simulated[Kind.B, back].append(timed.end - timed.backward_start)
    order = list(Kind)
    return [
        {
            "action": kind.value,
            "stage": stage,
            "measured_ms": _ms(median(measured[kind, stage])),
            "simulated_ms": _ms(median(simulated[kind, stage])),
        }
        for kind, stage in sorted(
            measured.keys() & simulated.keys(), key=lambda key: (order.index(key[0]), key[1])
        )
    ]
