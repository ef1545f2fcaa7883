"""Which stages of the network each pipeline rank holds, for every schedule, and the schedule itself."""

from __future__ import annotations

import math

from hcmegatron.config.schema import Parallel
from hcmegatron.planner.scheduled import (
    Held,
    descriptor,
    is_megatrons,
    most_held,
    placement,
    training_schedule,
)
from schedules.actions import Action, B, F
from schedules.placement import Placement
from schedules.schedule import Schedule

__all__ = [
    "Held",
    "descriptor",
    "evaluated_micro_batches",
    "evaluation_schedule",
    "first_micro_batches",
    "is_megatrons",
    "least_micro_batches",
    "most_held",
    "placement",
    "training_schedule",
]


def first_micro_batches(parallel: Parallel, rank: int, microbatches: int) -> list[int]:
    """Of so many micro-batches of a step, the first that each chunk of pipeline rank `rank` sees."""
    where = placement(parallel)
    return [where.microbatches_of(stage, microbatches).start for stage in where.stages_of(rank)]


def evaluated_micro_batches(parallel: Parallel, microbatches: int) -> int:
    """The least number of micro-batches, `microbatches` or more, that the schedule can run forward.

    Two directions need as many in each, and Megatron's interleaved schedule groups of one per rank.
    """
    in_turn = descriptor(parallel).microbatches_multiple(parallel.pipeline)
    multiple = math.lcm(len(placement(parallel).paths), in_turn)
    return -(-microbatches // multiple) * multiple


def least_micro_batches(parallel: Parallel) -> int:
    """The least number of micro-batches that a step under the schedule can have."""
    misfit = descriptor(parallel).misfit(parallel.pipeline, 1)
    return misfit.smallest if misfit else 1


def evaluation_schedule(where: Placement, microbatches: int) -> Schedule:
    """Forwards for any number of micro-batches (see `evaluated_micro_batches`): groups of 2P pass through a rank's
    stages one after another (P in each direction where there are two).

    It is run forward only. The backwards make it a schedule that can be validated like any other.
    """
    group = 2 * where.ranks // len(where.paths)
    actions = []
    for rank in range(where.ranks):
        stages = where.stages_of(rank)
        forwards: list[Action] = []
        for start in range(0, microbatches, group):
            for stage in stages:
                own = where.microbatches_of(stage, microbatches)[start : start + group]
                forwards += [F(stage, m) for m in own]
        backwards = [
            B(stage, m)
            for m in range(microbatches)
            for stage in reversed(stages)
            if m in where.microbatches_of(stage, microbatches)
        ]
        actions.append((*forwards, *backwards))
    return Schedule("evaluation", where, microbatches, tuple(actions), posted=group)
