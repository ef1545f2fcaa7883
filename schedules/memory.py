"""Bytes held by every rank over time: parameters, live chunks, weight gradients' leftovers, receive buffers.

A chunk's activations are held from the start of its F to the end of its B; split, until the end of I, and
what W needs of them until the end of W. A message's buffer is held from its first byte on the link until the
computation that uses it starts; from there on its content counts as the chunk's own. A rank holds the
parameters of every stage id on it, so DualPipe holds two copies of the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from schedules.actions import Kind
from schedules.timeline import Simulation


class Peak(NamedTuple):
    """Of one rank: the most bytes held at once, when that is first the case, and the most chunks and receive
    buffers held at once (not necessarily at that moment)."""

    bytes: float
    time: float
    chunks: int
    buffers: int


class _Event(NamedTuple):
    time: float
    bytes: float
    chunks: int
    buffers: int


def memory_over_time(simulation: Simulation) -> tuple[list[tuple[float, float]], ...]:
    """Per rank the (time, bytes held from then on) at every change, starting with the parameters at time
    0."""
    curves = []
    for rank, events in enumerate(_events(simulation)):
        held = parameter_bytes(simulation, rank)
        curve = [(0.0, held)]
        for event in events:
            held += event.bytes
            if event.time == curve[-1][0]:
                curve[-1] = (event.time, held)
            else:
                curve.append((event.time, held))
        curves.append(curve)
    return tuple(curves)


def peaks(simulation: Simulation) -> tuple[Peak, ...]:
    """The peak of every rank. What is freed at a time is free for what is allocated at that time."""
    found = []
    for rank, events in enumerate(_events(simulation)):
        held = top = parameter_bytes(simulation, rank)
        when, chunks, buffers, most_chunks, most_buffers = 0.0, 0, 0, 0, 0
        for event in events:
            held += event.bytes
            chunks += event.chunks
            buffers += event.buffers
            if held > top:
                top, when = held, event.time
            most_chunks, most_buffers = max(most_chunks, chunks), max(most_buffers, buffers)
        found.append(Peak(top, when, most_chunks, most_buffers))
    return tuple(found)


def parameter_bytes(simulation: Simulation, rank: int) -> float:
    """Parameters, gradients and optimizer state of all stage ids on the rank."""
    placement = simulation.schedule.placement
    table = simulation.costs.per_stage_id(placement)
    return sum(table[stage].parameters for stage in placement.stages_of(rank))


def _events(simulation: Simulation) -> Iterator[list[_Event]]:
    """Per rank, in order of time; at the same time, what is freed comes first."""
    table = simulation.costs.per_stage_id(simulation.schedule.placement)
    message_bytes = simulation.costs.message_bytes
    started: list[dict[tuple[Kind, int, int], float]] = []
    all_events: list[list[_Event]] = []
    for timeline in simulation.timeline:
        starts: dict[tuple[Kind, int, int], float] = {}
        events = []
        for timed in timeline:
            for part in timed.action.parts:
                cost = table[part.stage]
                if part.kind is Kind.F:
                    events.append(_Event(timed.start, cost.activation, 1, 0))
                    starts[Kind.F, part.stage, part.microbatch] = timed.start
                elif part.kind is Kind.W:
                    events.append(_Event(timed.end, -cost.pending, -1, 0))
                else:
                    freed = cost.activation - (cost.pending if part.kind is Kind.I else 0.0)
                    events.append(_Event(timed.end, -freed, 0 if part.kind is Kind.I else -1, 0))
                    starts[Kind.B, part.stage, part.microbatch] = timed.backward_start
        started.append(starts)
        all_events.append(events)
    for transfer in simulation.transfers:
        message = transfer.message
        used = started[message.target_rank][message.payload, message.target, message.microbatch]
        events = all_events[message.target_rank]
        if used > transfer.leaves:
            events.append(_Event(transfer.leaves, message_bytes, 0, 1))
            events.append(_Event(used, -message_bytes, 0, -1))
    for events in all_events:
        yield sorted(events, key=lambda e: (e.time, e.bytes, e.chunks + e.buffers))


def channel_buffers(simulation: Simulation) -> dict[tuple[int, int], int]:
    """By channel (source, target stage id), the most messages that were sent but not yet in use at once: how
    many receives are worth posting."""
    changes: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    starts = {
        (payload, part.stage, part.microbatch): time
        for timeline in simulation.timeline
        for timed in timeline
        for part in timed.action.parts
        for payload, time in (
            [(Kind.F, timed.start)] if part.kind is Kind.F else [(Kind.B, timed.backward_start)]
        )
        if part.kind is not Kind.W
    }
    for transfer in simulation.transfers:
        message = transfer.message
        used = starts[message.payload, message.target, message.microbatch]
        changes[message.channel] += [(transfer.produced, 1), (used, -1)]
    most = {}
    for channel, events in changes.items():
        held = top = 0
        for _, change in sorted(events, key=lambda e: (e[0], -e[1])):
            held += change
            top = max(top, held)
        most[channel] = top
    return most
