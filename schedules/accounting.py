"""Where a rank's time goes in a step: it computes, or it stands still, and why. Of simulated and measured steps alike.

A rank computes while any of its computing lanes is busy; everything else of the step is its bubble, in parts:

- waiting: it stands still for a communication that is on its way. This, and nothing else, is *exposed*
  communication; the rest of the time that something travels to it (each on its own) is *hidden*;
- it waits for what nobody has produced yet: `fill` before its first backward begins, `drain` after its last
  forward has ended, `imbalance` between, where a balanced schedule on free links never waits;
- drain, too: it is done, and others are not;
- host: it waits for nothing, and does not compute.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

CAUSES = ("fill", "drain", "waiting", "imbalance", "host")
KINDS = ("hop", "dispatch", "combine", "reduction")  # of communication


class Interval(NamedTuple):
    start: float
    end: float


class Travel(NamedTuple):
    """A communication that a rank receives or takes part in, on its way from ``start`` to ``end``."""

    kind: str
    start: float
    end: float
    what: str = ""


class Wait(NamedTuple):
    """From ``start`` to ``end`` a rank goes on with nothing before ``travel`` is there."""

    start: float
    end: float
    travel: Travel


@dataclass(frozen=True)
class RankTimeline:
    """What one rank did in a step.

    ``computing`` may overlap. Of waits that overlap, the first in the list counts. ``end`` is that of all that the
    rank had to do. Without a backward, or a forward, there is no fill, or drain, before the end.
    """

    computing: Sequence[Interval]
    waits: Sequence[Wait]
    travels: Sequence[Travel]
    end: float
    first_backward: float = -math.inf
    last_forward: float = math.inf


@dataclass(frozen=True)
class RankAccount:
    """``bubble`` has every one of CAUSES; ``exposed`` and ``hidden`` are by kind of communication, ``waited_for`` the
    exposed time by what was waited for. ``computing`` and the bubble add up to the step."""

    computing: float
    bubble: dict[str, float]
    exposed: dict[str, float]
    hidden: dict[str, float]
    waited_for: dict[str, float]


def account(rank: RankTimeline, begin: float, end: float) -> RankAccount:
    """Of a step from ``begin`` to ``end``, the same for all of its ranks."""
    gaps = idle(rank.computing, begin, end)
    bubble = dict.fromkeys(CAUSES, 0.0)
    exposed: dict[str, float] = defaultdict(float)
    waited_for: dict[str, float] = defaultdict(float)
    computed = end - begin - length(gaps)
    for wait in rank.waits:
        travel = wait.travel
        for part in _taken(gaps, wait.start, wait.end):
            on_its_way = max(0.0, min(part.end, travel.end) - max(part.start, travel.start))
            exposed[travel.kind] += on_its_way
            waited_for[travel.what] += on_its_way
            bubble["waiting"] += on_its_way
            for name, share in _unproduced(part, travel.start, rank).items():
                bubble[name] += share
            bubble["host"] += max(0.0, part.end - max(part.start, travel.end))  # there, and not yet noticed
    bubble["drain"] += length(_taken(gaps, rank.end, end))
    bubble["host"] += length(gaps)
    travelled: dict[str, float] = defaultdict(float)
    for travel in rank.travels:
        travelled[travel.kind] += travel.end - travel.start
    hidden = {kind: max(0.0, total - exposed[kind]) for kind, total in travelled.items()}
    return RankAccount(computed, bubble, dict(exposed), hidden, dict(waited_for))


def idle(busy: Iterable[Interval], begin: float, end: float) -> list[Interval]:
    """What of [begin, end] no interval covers, in order."""
    gaps, until = [], begin
    for start, stop in sorted(busy):
        if start > until and until < end:
            gaps.append(Interval(until, min(start, end)))
        until = max(until, stop)
    if until < end:
        gaps.append(Interval(until, end))
    return gaps


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def _taken(gaps: list[Interval], start: float, end: float) -> list[Interval]:
    """Takes out of the gaps, which are in order, what lies between start and end."""
    first = bisect_right(gaps, start, key=lambda gap: gap.end)
    taken, left, index = [], [], first
    while index < len(gaps) and gaps[index].start < end:
        gap = gaps[index]
        taken.append(Interval(max(gap.start, start), min(gap.end, end)))
        if gap.start < start:
            left.append(Interval(gap.start, start))
        if gap.end > end:
            left.append(Interval(end, gap.end))
        index += 1
    gaps[first:index] = left
    return [part for part in taken if part.end > part.start]


def _unproduced(part: Interval, produced: float, rank: RankTimeline) -> dict[str, float]:
    """What of a wait comes before its message was produced, by cause."""
    start, end = part.start, min(part.end, produced)
    if end <= start:
        return {}
    fill = max(0.0, min(end, rank.first_backward) - start)
    drain = max(0.0, end - max(start + fill, rank.last_forward))
    return {"fill": fill, "drain": drain, "imbalance": end - start - fill - drain}
