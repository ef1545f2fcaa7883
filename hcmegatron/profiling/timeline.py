"""A step of all ranks on one clock: who computed when, what travelled when, and who waited for it. Pure, no torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hcmegatron.profiling.rank_step import RankRecord, RankStep, Sent, Waited
from schedules.accounting import Interval, RankAccount, RankTimeline, Travel, Wait, account, idle

NOTICED = 2e-4  # seconds: a shorter wait is for a message that was there; what it takes is the host's work
COMMUNICATION = "communication"
COMPUTING = ("compute", "high priority")

_Message = tuple[tuple[int, ...], str]  # pipeline, and the sending as the schedule writes it


@dataclass(frozen=True)
class StepTimeline:
    """One step of all ranks, in seconds on rank 0's clock.

    Attributes:
        ranks: of each, what it did.
        own: of each, what it recorded.
        hops: messages as far as their way is known, with their ranks: (source, target, travel).
    """

    step: int
    begin: float
    end: float
    records: tuple[RankRecord, ...]
    own: tuple[RankStep, ...]
    ranks: tuple[RankTimeline, ...]
    hops: tuple[tuple[int, int, Travel], ...]

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def accounts(self) -> list[RankAccount]:
        """Where each rank's time went."""
        return [account(rank, self.begin, self.end) for rank in self.ranks]


def joined(records: Sequence[RankRecord], index: int) -> StepTimeline:
    """The `index`-th profiled step of all ranks, which are in order."""
    own = [record.steps[index].shifted(record.offset) for record in records]
    sends: dict[_Message, Sent] = {
        (record.pipeline, sent.message): sent
        for record, step in zip(records, own, strict=True)
        for sent in step.sends
    }
    usual = _usual(records, own, sends)
    all_done = max(step.pipeline[1] for step in own)
    ranks, hops = [], []
    for record, step in zip(records, own, strict=True):
        waits, travels = [], []
        for wait in step.waits:
            if wait.source == record.pipeline_rank and wait.end - wait.start < NOTICED:
                continue  # it had left
            travel = _travel(record, wait, sends, usual)
            waits.append(Wait(wait.start, wait.end, travel))
            travels.append(travel)
            if wait.source != record.pipeline_rank:
                hops.append((record.pipeline[wait.source], record.rank, travel))
        ranks.append(_rank_timeline(step, waits, travels, all_done))
    begin, end = min(step.begin for step in own), max(step.end for step in own)
    return StepTimeline(own[0].step, begin, end, tuple(records), tuple(own), tuple(ranks), tuple(hops))


def _usual(
    records: Sequence[RankRecord], own: Sequence[RankStep], sends: dict[_Message, Sent]
) -> dict[tuple[int, int], float]:
    """Seconds on the way, by pair of ranks in a pipeline, of messages whose coming was seen: they were waited for. The
    lower quartile, for a host that notices late only adds to it. Of a pair where none was, what others take."""
    seen: dict[tuple[int, int], list[float]] = defaultdict(list)
    for record, step in zip(records, own, strict=True):
        for wait in step.waits:
            sent = sends.get((record.pipeline, wait.message))
            if sent and wait.source != record.pipeline_rank and wait.end - wait.start > NOTICED:
                seen[wait.source, wait.target].append(max(0.0, wait.end - max(sent.at, step.begin)))
    found = {pair: sorted(seconds)[len(seconds) // 4] for pair, seconds in seen.items()}
    anywhere = median(found.values()) if found else 0.0
    return defaultdict(lambda: anywhere, found)


def _travel(
    record: RankRecord,
    wait: Waited,
    sends: dict[_Message, Sent],
    usual: dict[tuple[int, int], float],
) -> Travel:
    """When the message that was waited for was on its way: to its end, where it was waited for; else as long as usual,
    and no longer than until it was taken."""
    if wait.source == record.pipeline_rank:  # until it had left
        return Travel("hop", wait.start, wait.end, f"{wait.message} leaving")
    sent = sends[record.pipeline, wait.message]
    start = min(sent.at, wait.end)
    if wait.end - wait.start > NOTICED:
        return Travel("hop", start, wait.end, wait.message)
    return Travel("hop", start, min(wait.end, start + usual[wait.source, wait.target]), wait.message)


def _rank_timeline(step: RankStep, waits: list[Wait], travels: list[Travel], all_done: float) -> RankTimeline:
    moved = [
        Travel(node.node, node.start, node.end, f"{node.phase} {node.node}")
        for node in step.nodes
        if node.lane == COMMUNICATION
    ]
    own_end = max([step.pipeline[1], *(node.end for node in step.nodes)])
    reduction = Travel("reduction", max(all_done, own_end), max(all_done, step.finalised), "reduction")
    still = [*(Interval(w.start, w.end) for w in waits), *(Interval(t.start, t.end) for t in moved)]
    computing = [
        Interval(step.begin, step.pipeline[0]),  # gradients are cleared
        Interval(step.finalised, step.end),  # weights are updated
        *(Interval(node.start, node.end) for node in step.nodes if node.lane in COMPUTING),
    ]
    between = idle([Interval(ran.start, ran.end) for ran in step.actions], *step.pipeline)
    computing += idle([*between, *still], *step.pipeline)
    return RankTimeline(
        computing,
        [
            *(Wait(t.start, t.end, t) for t in moved),
            *waits,
            Wait(own_end, step.finalised, reduction),
        ],
        [*travels, *moved, reduction],
        step.end,
        min((ran.start for ran in step.actions if _is(ran.action, "BI")), default=-math.inf),
        max((ran.end for ran in step.actions if _is(ran.action, "F")), default=math.inf),
    )


def _is(action: str, kinds: str) -> bool:
    return any(kind in action for kind in kinds)
