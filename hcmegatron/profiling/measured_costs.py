"""What a step's actions and messages took, as the simulator's costs. Pure, no torch."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import fmean, median

from hcmegatron.profiling.rank_step import Ran
from hcmegatron.profiling.timeline import StepTimeline
from schedules.accounting import Interval, idle, length
from schedules.actions import Action, Kind, parse_action
from schedules.costs import Costs, Link, StageCosts
from schedules.placement import Placement
from schedules.schedule import Schedule


@dataclass(frozen=True)
class MeasuredCosts:
    """In seconds.

    Attributes:
        stages: of every model stage, without `host`.
        host: between two actions, of a rank: neither computation nor waiting.
        lead: of overlapped pairs, the part of F that is done when B joins.
        moved: of every model stage, the part of F and B in which all-to-alls alone are under way.
        splits: I and W were measured; else they are halves of B.
        outside: of a step, before and after its pipeline.
        overlaps: the halves of pairs were under way at once.
    """

    stages: tuple[StageCosts, ...]
    link: Link
    host: float
    lead: float
    moved: tuple[float, ...]
    splits: bool
    outside: float
    overlaps: bool

    def costs(self, lockstep: bool = False) -> Costs:
        """For the simulator: what the host takes comes with every action."""
        return Costs(
            tuple(with_host(stage, self.host) for stage in self.stages),
            self.link,
            early=not lockstep,
            lead=self.lead,
        )


def with_host(stage: StageCosts, host: float) -> StageCosts:
    """The stage with the host's time in every action; in a pair, of both."""
    F, I, W, B = (value + host for value in (stage.F, stage.I, stage.W, stage.B))
    return paired(StageCosts(F=F, I=I, W=W, B=B), stage.FB + 2 * host, stage.tail)


def paired(stage: StageCosts, FB: float, tail: float) -> StageCosts:
    """The stage with these costs of its pairs, as far as F, B and W allow: measured times and sums are rounded."""
    FB = min(max(stage.F, stage.B, FB), stage.F + stage.B)
    return replace(stage, FB=FB, tail=min(tail, stage.W))


def durations(timeline: StepTimeline, still: bool = False) -> Iterator[tuple[tuple[Action, ...], float]]:
    """Actions, a pair as (F, B), and the seconds of each; without what the rank stood still for within it unless
    `still`. Of a pair whose halves do not overlap, each half too."""
    for step, rank in zip(timeline.own, timeline.ranks, strict=True):
        waits = sorted((w.start, w.end) for w in rank.waits if w.travel.kind == "hop" and not still)
        by_position: dict[int, list[Ran]] = defaultdict(list)
        for ran in step.actions:
            by_position[ran.position].append(ran)
        for own in by_position.values():
            parts = tuple(parse_action(ran.action) for ran in own)
            yield parts, _moving(waits, own[0].start, max(ran.end for ran in own))
            if len(own) == 2 and own[0].end <= own[1].start:
                for part, ran in zip(parts, own, strict=True):
                    yield (part,), _moving(waits, ran.start, ran.end)


def _moving(waits: list[tuple[float, float]], start: float, end: float) -> float:
    """Of the time from start to end, what is no wait."""
    near = waits[bisect_left(waits, (start,)) :] if waits else []
    within = [Interval(*wait) for wait in takewhile(lambda wait: wait[0] < end, near)]
    return length(idle(within, start, end))


def measured_costs(timelines: Sequence[StepTimeline], schedule: Schedule) -> MeasuredCosts:
    """Medians over the actions of some steps; of a stage that several ranks hold, over all of theirs."""
    where = schedule.placement
    taken: dict[tuple[Kind, int], list[float]] = defaultdict(list)
    pairs: dict[tuple[int, int], list[float]] = defaultdict(list)
    for parts, seconds in (one for timeline in timelines for one in durations(timeline)):
        first, *second = (where.model_stage(part.stage) for part in parts)
        if second:
            pairs[first, second[0]].append(seconds)
        else:
            taken[parts[0].kind, first].append(seconds)
    splits = any(kind is Kind.I for kind, _ in taken)
    stages = [
        _stage({kind: median(taken[kind, stage]) for kind in Kind if taken.get((kind, stage))})
        for stage in range(where.model_stages)
    ]
    leads, tails = _pairing(timelines)
    tail = median(tails) if tails else 0.0
    return MeasuredCosts(
        tuple(_paired(stages, pairs, tail)),
        Link(latency=_hop(timelines)),
        median(map(_host, timelines)),
        median(leads) if leads else 1.0,
        _moved(timelines, where),
        splits,
        median(timeline.seconds - _pipeline_seconds(timeline) for timeline in timelines),
        bool(leads),
    )


def _pairing(timelines: Sequence[StepTimeline]) -> tuple[list[float], list[float]]:
    """Of overlapped pairs: the part of F that was done when B joined, and the seconds between B's result leaving and
    the end, in which weight gradients alone are left."""
    leads, tails = [], []
    for step in (own for timeline in timelines for own in timeline.own):
        left = {sent.message: sent.at for sent in step.sends}
        by_position: dict[int, list[Ran]] = defaultdict(list)
        for ran in step.actions:
            by_position[ran.position].append(ran)
        for own in by_position.values():
            if len(own) == 2 and own[0].end > own[1].start:
                f, b = own
                leads.append(min(1.0, max(0.0, (b.start - f.start) / (f.end - f.start))))
                part = parse_action(b.action)
                if at := left.get(f"{part.stage}SEND_B{part.microbatch}"):
                    tails.append(max(0.0, b.end - at))
    return leads, tails


def _stage(own: Mapping[Kind, float]) -> StageCosts:
    """What one kind of action does not say, the others do; of B alone, I and W are taken for halves."""
    I, W = own.get(Kind.I), own.get(Kind.W)
    B = own.get(Kind.B, (I or 0.0) + (W or 0.0))
    I = B / 2 if I is None else I
    return StageCosts(F=own.get(Kind.F, B / 2), I=I, W=max(0.0, B - I) if W is None else W, B=B)


def _hop(timelines: Sequence[StepTimeline]) -> float:
    hops = [travel.end - travel.start for timeline in timelines for *_, travel in timeline.hops]
    return median(hops) if hops else 0.0


def _paired(
    stages: list[StageCosts], pairs: dict[tuple[int, int], list[float]], tail: float
) -> Iterator[StageCosts]:
    """With FB: what a pair of two stages saves counts for both (schedules/costs.py)."""
    saved: dict[int, list[float]] = defaultdict(list)
    for (f, b), seconds in pairs.items():
        for stage in (f, b):
            saved[stage].append(max(0.0, stages[f].F + stages[b].B - median(seconds)))
    for number, stage in enumerate(stages):
        gain = fmean(saved[number]) if number in saved else 0.0
        yield paired(stage, stage.F + stage.B - gain, tail)


def _host(timeline: StepTimeline) -> float:
    """Of an action, on the rank where it is most: gaps that are no wait, between its first and its last action."""
    most = 0.0
    for step, rank in zip(timeline.own, timeline.ranks, strict=True):
        starts, ends = [ran.start for ran in step.actions], [ran.end for ran in step.actions]
        still = [Interval(wait.start, wait.end) for wait in rank.waits]
        gaps = idle([*rank.computing, *still], min(starts), max(ends))
        most = max(most, length(gaps) / len(step.actions))
    return most


def _moved(timelines: Sequence[StepTimeline], where: Placement) -> tuple[float, ...]:
    """By model stage, the share of its actions' time in which an all-to-all is under way and nothing computes."""
    alone: dict[int, float] = defaultdict(float)
    total: dict[int, float] = defaultdict(float)
    for timeline in timelines:
        for step, rank in zip(timeline.own, timeline.ranks, strict=True):
            moved = [t for t in rank.travels if t.kind in ("dispatch", "combine")]
            unhidden = [*rank.computing, *idle([Interval(t.start, t.end) for t in moved], *step.pipeline)]
            still = idle(unhidden, *step.pipeline) if moved else []
            for ran in step.actions:
                stage = where.model_stage(parse_action(ran.action).stage)
                total[stage] += ran.end - ran.start
                first = bisect_left(still, (ran.start,))
                within = takewhile(lambda gap, ran=ran: gap.start < ran.end, still[first:])
                alone[stage] += sum(min(gap.end, ran.end) - gap.start for gap in within)
    return tuple(alone[s] / total[s] if total[s] else 0.0 for s in range(where.model_stages))


def _pipeline_seconds(timeline: StepTimeline) -> float:
    first = min(step.pipeline[0] for step in timeline.own)
    return max(step.pipeline[1] for step in timeline.own) - first
