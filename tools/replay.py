"""When a step would have ended had its stages taken the times that they took, and nothing else any."""

from __future__ import annotations

from collections.abc import Sequence

from schedules.actions import Kind
from schedules.schedule import Schedule, input_of, output_of


def replayed(schedule: Schedule, taken: Sequence[Sequence[float]]) -> list[float]:
    """By rank, when its last action ends, with messages and hosts that cost nothing. Pure.

    Args:
        taken: by rank, seconds of its plain actions in order; an FB is its F, then its B.
    """
    placement = schedule.placement
    parts = [[part for action in actions for part in action.parts] for actions in schedule.actions]
    there: dict[tuple[Kind, int, int], float] = {}
    position, clock = [0] * schedule.ranks, [0.0] * schedule.ranks
    moved = True
    while moved:
        moved = False
        for rank, own in enumerate(parts):
            while position[rank] < len(own):
                part = own[position[rank]]
                source, target = input_of(placement, part), output_of(placement, part)
                needed = None if source is None else (source[0], part.stage, part.microbatch)
                if needed is not None and needed not in there:
                    break
                begin = clock[rank] if needed is None else max(clock[rank], there[needed])
                clock[rank] = begin + taken[rank][position[rank]]
                if target is not None:
                    there[target[0], target[1], part.microbatch] = clock[rank]
                position[rank] += 1
                moved = True
    assert all(done == len(own) for done, own in zip(position, parts, strict=True)), "a valid schedule ends"
    return clock
