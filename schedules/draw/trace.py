"""A simulated schedule as trace events for Perfetto (ui.perfetto.dev) or chrome://tracing.

A process per rank with three lanes: compute, high priority, communication. Actions lie on the compute lane;
where the costs came from nodes, those lie inside on their own lanes. Messages lie on lanes of the
sender's, with an arrow from the action that produced them to the one that uses them. A counter
shows the bytes held.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from schedules.actions import Kind
from schedules.memory import memory_over_time
from schedules.node_costs import LANES, Slot, backward_slots, forward_slots, makespan, pair_slots
from schedules.timeline import Simulation, Timed

MESSAGES = len(LANES)  # the first of the lanes of messages, below those of the nodes


def to_trace(simulation: Simulation, unit_in_us: float = 1000.0) -> str:
    """JSON text. ``unit_in_us`` is the length of the costs' unit of time; the default reads it as
    milliseconds."""
    events: list[dict[str, Any]] = []
    for rank, timeline in enumerate(simulation.timeline):
        events.append(_name("process_name", rank, 0, f"rank {rank}"))
        for lane, name in enumerate(("compute", "high priority", "communication", "messages sent")):
            events.append(_name("thread_name", rank, lane, name))
        for timed in timeline:
            events += _action(simulation, rank, timed, unit_in_us)
    events += _messages(simulation, unit_in_us)
    for rank, curve in enumerate(memory_over_time(simulation)):
        for time, held in curve:
            events.append(
                {
                    "ph": "C",
                    "name": "bytes held",
                    "pid": rank,
                    "ts": time * unit_in_us,
                    "args": {"bytes": held},
                }
            )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _name(kind: str, rank: int, lane: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": lane, "args": {"name": name}}


def _slice(
    name: str, category: str, rank: int, lane: int, start: float, end: float, unit: float
) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": rank,
        "tid": lane,
        "ts": start * unit,
        "dur": (end - start) * unit,
    }


def _action(simulation: Simulation, rank: int, timed: Timed, unit: float) -> Iterator[dict[str, Any]]:
    action = timed.action
    yield _slice(str(action), action.kind.value, rank, 0, timed.start, timed.end, unit)
    if action.overlapped is not None and timed.backward_start >= timed.forward_end:
        forward, backward = action.parts
        yield _slice(str(forward), "F", rank, 0, timed.start, timed.forward_end, unit)
        yield _slice(str(backward), "B", rank, 0, timed.backward_start, timed.end, unit)
    for slots, start, end in _inside(simulation, timed):
        scale = (end - start) / (makespan(slots) or 1.0)
        for slot in slots:
            at, until = start + slot.start * scale, start + slot.end * scale
            yield _slice(f"{slot.role} {slot.phase}", "node", rank, LANES.index(slot.lane), at, until, unit)


def _inside(simulation: Simulation, timed: Timed) -> Iterator[tuple[list[Slot], float, float]]:
    """Groups of slots with the time that each group takes up; none where the costs did not come from
    nodes."""
    table = simulation.costs.per_stage_id(simulation.schedule.placement)
    action = timed.action
    layers = table[action.stage].layers
    if not layers or action.kind is Kind.W:
        return
    if action.overlapped is None:
        is_forward = action.kind is Kind.F
        slots = forward_slots(layers) if is_forward else backward_slots(layers, weights=action.kind is Kind.B)
        yield slots, timed.start, timed.end
        return
    behind = table[action.overlapped.stage].layers
    if timed.backward_start >= timed.forward_end:
        yield forward_slots(layers), timed.start, timed.forward_end
        yield backward_slots(behind), timed.backward_start, timed.end
        return
    alone = (timed.backward_start - timed.start) / (table[action.stage].F or 1.0)
    yield pair_slots(layers, behind, lead=round(alone * len(layers))), timed.start, timed.end


def _messages(simulation: Simulation, unit: float) -> Iterator[dict[str, Any]]:
    """Messages in flight at the same time lie on lanes of their own, as slices of one lane may not
    overlap."""
    free: dict[int, list[float]] = {}  # per rank, when each of its message lanes is free again
    users = {
        (Kind.F if part.kind is Kind.F else Kind.B, part.stage, part.microbatch): timed
        for timeline in simulation.timeline
        for timed in timeline
        for part in timed.action.parts
        if part.kind is not Kind.W
    }
    for number, (message, produced, leaves, arrives) in enumerate(simulation.transfers):
        user = users[message.payload, message.target, message.microbatch]
        used = user.start if message.payload is Kind.F else user.backward_start
        lanes = free.setdefault(message.source_rank, [])
        lane = next((i for i, until in enumerate(lanes) if until <= leaves), len(lanes))
        lanes[lane : lane + 1] = [arrives]
        yield _slice(
            message.send_text, "message", message.source_rank, MESSAGES + lane, leaves, arrives, unit
        )
        arrow = {"name": "message", "cat": "message", "id": number}
        # An arrow's ends bind to the slices that enclose them, so they lie just inside.
        yield {**arrow, "ph": "s", "pid": message.source_rank, "tid": 0, "ts": produced * unit - 1e-3}
        yield {**arrow, "ph": "f", "bp": "e", "pid": message.target_rank, "tid": 0, "ts": used * unit + 1e-3}
