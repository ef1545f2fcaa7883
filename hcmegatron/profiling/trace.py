"""One trace of all ranks for Perfetto (ui.perfetto.dev) or chrome://tracing, on rank 0's clock. Pure, no torch.

A process for every rank, with tracks for its actions, its waits, its lanes and the messages that come to it, arrows
from the action that made a message to the one that uses it, and, for the steps that torch.profiler saw, a track for
every thread of the host and every stream of the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from hcmegatron.profiling.rank_step import RankStep, makers
from hcmegatron.profiling.timeline import NOTICED, StepTimeline
from schedules.actions import parse_action
from schedules.schedule import Schedule

TRACKS = ("actions", "waiting", "compute", "high priority", "communication")
MESSAGES = len(TRACKS)  # the first of the tracks of messages
HOST = 100  # the first of torch.profiler's
_INSIDE = 1e-3  # microseconds: an arrow's ends bind to the slices that enclose them


class HostEvent(NamedTuple):
    """What torch.profiler saw, in seconds on the rank's own clock; `track` is a thread or a stream in words."""

    name: str
    category: str
    track: str
    start: float
    end: float


@dataclass(frozen=True)
class _Track:
    rank: int
    number: int
    begin: float  # of the trace, on rank 0's clock

    def slice(self, name: str, category: str, start: float, end: float, **more: Any) -> dict[str, Any]:
        found = {
            "ph": "X",
            "name": name,
            "cat": category,
            "pid": self.rank,
            "tid": self.number,
            "ts": self.at(start),
            "dur": max(0.0, round(1e6 * (end - start), 3)),
        }
        return found | ({"args": more} if more else {})

    def at(self, seconds: float) -> float:
        return round(1e6 * (seconds - self.begin), 3)

    def called(self, name: str) -> list[dict[str, Any]]:
        place = {"pid": self.rank, "tid": self.number, "ph": "M"}
        return [
            {**place, "name": "thread_name", "args": {"name": name}},
            {**place, "name": "thread_sort_index", "args": {"sort_index": self.number}},
        ]


def to_trace(
    steps: Sequence[StepTimeline], schedule: Schedule, host: Sequence[Sequence[HostEvent]] = ()
) -> dict[str, Any]:
    """The trace as an object of JSON.

    Args:
        host: of every rank, what torch.profiler saw.
    """
    begin, events = steps[0].begin, []
    for index, record in enumerate(steps[0].records):
        name = f"rank {record.rank} ({record.host}, stage{_stages(schedule, record.pipeline_rank)})"
        events.append(
            {"ph": "M", "name": "process_name", "pid": record.rank, "tid": 0, "args": {"name": name}}
        )
        for number, track in enumerate(TRACKS):
            events += _Track(record.rank, number, begin).called(track)
        messages = _Messages(record.rank, begin)
        for step in steps:
            events += _rank(step.own[index], schedule, record.pipeline_rank, record.rank, begin)
            for source, target, travel in step.hops:
                if target == record.rank:
                    events += messages.add(travel.what, travel.start, travel.end, source)
        if index < len(host):
            events += _host(host[index], record.rank, record.offset, begin)
    for number, step in enumerate(steps):
        events += _arrows(step, begin, f"{number}")
    about = {
        "schedule": schedule.name,
        "steps": [step.step for step in steps],
        "clocks of ranks agree to within, ms": 1e3 * max(record.uncertainty for record in steps[0].records),
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _stages(schedule: Schedule, rank: int) -> str:
    own = schedule.placement.stages_of(rank)
    return f"{'s' if len(own) > 1 else ''} {', '.join(map(str, own))}"


def _rank(
    step: RankStep, schedule: Schedule, pipeline_rank: int, rank: int, begin: float
) -> Iterator[dict[str, Any]]:
    actions, waiting, *lanes = (_Track(rank, number, begin) for number in range(MESSAGES))
    yield actions.slice("clear gradients", "step", step.begin, step.pipeline[0], step=step.step)
    yield actions.slice("reduce gradients", "step", step.pipeline[1], step.finalised, step=step.step)
    yield actions.slice("update weights", "step", step.finalised, step.end, step=step.step)
    parts: dict[int, list[tuple[str, float, float]]] = {}
    for ran in step.actions:
        parts.setdefault(ran.position, []).append((ran.action, ran.start, ran.end))
    for position, own in parts.items():
        whole = schedule.actions[pipeline_rank][position]
        start, end = min(s for _, s, _ in own), max(e for *_, e in own)
        about = {"stage": whole.stage, "micro_batch": whole.microbatch, "step": step.step}
        yield actions.slice(str(whole), whole.kind.value, start, end, **about)
        if len(own) == 2 and own[0][2] <= own[1][1]:  # halves one after the other lie inside
            for name, since, until in own:
                yield actions.slice(name, parse_action(name).kind.value, since, until)
    for wait in step.waits:
        if wait.end - wait.start > NOTICED:
            words = "to leave" if wait.source == pipeline_rank else f"from rank {wait.source} of the pipeline"
            yield waiting.slice(wait.message, "waiting", wait.start, wait.end, waits_for=words)
    for lane in lanes:
        until = 0.0
        for node in sorted(step.nodes, key=lambda node: node.start):
            if node.lane == TRACKS[lane.number]:
                start = max(node.start, until)  # two clocks' rounding
                until = max(node.end, start)
                yield lane.slice(f"{node.phase} {node.node}", "node", start, until)


class _Messages:
    """Tracks of the messages to a rank: those on their way at the same time lie on tracks of their own."""

    def __init__(self, rank: int, begin: float) -> None:
        self.rank, self.begin = rank, begin
        self.free: list[float] = []

    def add(self, name: str, start: float, end: float, source: int) -> Iterator[dict[str, Any]]:
        number = next((i for i, until in enumerate(self.free) if until <= start), len(self.free))
        track = _Track(self.rank, MESSAGES + number, self.begin)
        if number == len(self.free):
            yield from track.called("messages" if number == 0 else f"messages, {number + 1}")
        self.free[number : number + 1] = [end]
        yield track.slice(name, "message", start, end, source=source)


def _arrows(step: StepTimeline, begin: float, prefix: str) -> Iterator[dict[str, Any]]:
    """From the action that made a message to the one that waited for it."""
    made = {}
    for record, own in zip(step.records, step.own, strict=True):
        runs = {ran.action: ran for ran in own.actions}
        for sent in own.sends:
            ran = next(runs[name] for name in makers(sent.message) if name in runs)
            # a moment of the action, which its record may have closed just before
            made[record.pipeline, sent.message] = record.rank, max(ran.start, min(sent.at, ran.end))
    for record, own in zip(step.records, step.own, strict=True):
        ends = sorted((ran.start, ran.end) for ran in own.actions)
        for wait in own.waits:
            source = made.get((record.pipeline, wait.message))
            used = next((start for start, end in ends if end > wait.end), None)
            if wait.source == record.pipeline_rank or source is None or used is None:
                continue
            rank, at = source
            arrow = {
                "name": "message",
                "cat": "message",
                "id": f"{prefix}.{record.pipeline[0]}.{wait.message}",
            }
            left, right = _Track(rank, 0, begin), _Track(record.rank, 0, begin)
            yield {**arrow, "ph": "s", "pid": rank, "tid": 0, "ts": left.at(at) - _INSIDE}
            came = max(used, wait.end)
            yield {
                **arrow,
                "ph": "f",
                "bp": "e",
                "pid": record.rank,
                "tid": 0,
                "ts": right.at(came) + _INSIDE,
            }


def _host(events: Iterable[HostEvent], rank: int, offset: float, begin: float) -> Iterator[dict[str, Any]]:
    """Slices of a track lie within one another or apart: what does not, such as collectives that the host has begun and
    not waited for, is on another one."""
    tracks: dict[str, _Track] = {}
    open_until: dict[str, list[float]] = {}
    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        for number in count(1):
            name = event.track if number == 1 else f"{event.track}, beside it {number - 1}"
            stack = open_until.setdefault(name, [])
            while stack and stack[-1] <= event.start:
                stack.pop()
            if not stack or event.end <= stack[-1]:
                break
        stack.append(event.end)
        if name not in tracks:
            tracks[name] = _Track(rank, HOST + len(tracks), begin)
            yield from tracks[name].called(name)
        yield tracks[name].slice(event.name, event.category, event.start + offset, event.end + offset)
