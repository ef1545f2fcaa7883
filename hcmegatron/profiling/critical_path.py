"""The chain of actions that a step's pipeline was as long as: each began when the one before it was done, or its
message was there. Pure, no torch."""

from __future__ import annotations

from typing import NamedTuple

from hcmegatron.profiling.rank_step import Ran, Waited, makers
from hcmegatron.profiling.timeline import NOTICED, StepTimeline


class OnPath(NamedTuple):
    """An action on the path, from when nothing else of the path was going on."""

    rank: int
    action: str
    start: float
    seconds: float


def critical_path(timeline: StepTimeline) -> list[OnPath]:
    """First to last. Back from the action that ended last: to the sender of the message that its rank was waiting for
    last before it, where it was; else to the rank's action before."""
    made: dict[
        tuple[tuple[int, ...], str], tuple[int, int]
    ] = {}  # who made a message: rank, and which action
    runs = [sorted(step.actions, key=lambda ran: ran.end) for step in timeline.own]
    for index, (record, step) in enumerate(zip(timeline.records, timeline.own, strict=True)):
        places = {ran.action: place for place, ran in enumerate(runs[index])}
        for sent in step.sends:
            place = next(places[name] for name in makers(sent.message) if name in places)
            made[record.pipeline, sent.message] = index, place
    rank = max((r for r in range(len(runs)) if runs[r]), key=lambda r: runs[r][-1].end)
    position, path = len(runs[rank]) - 1, []
    while True:
        ran, record = runs[rank][position], timeline.records[rank]
        path.append((rank, ran))
        awaited = _awaited(ran, timeline.own[rank].waits, record.pipeline_rank)
        before = made.get((record.pipeline, awaited.message)) if awaited else None
        if before is None and position > 0:
            before = rank, position - 1
        if before is None:
            break
        rank, position = before
    path.reverse()
    found, until = [], timeline.begin
    for rank, ran in path:
        start = max(ran.start, until)
        found.append(OnPath(timeline.records[rank].rank, ran.action, start, max(0.0, ran.end - start)))
        until = max(until, ran.end)
    return found


def _awaited(ran: Ran, waits: tuple[Waited, ...], own: int) -> Waited | None:
    """The message without which it could not begin, where the rank was waiting for it: its wait ends as it starts."""
    near = [wait for wait in waits if wait.source != own and abs(wait.end - ran.start) < NOTICED]
    last = max(near, key=lambda wait: wait.end, default=None)
    return last if last and last.end - last.start > NOTICED else None
