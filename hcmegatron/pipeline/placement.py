"""Which stages of the network each pipeline rank holds, for every schedule, and the schedule itself."""

from __future__ import annotations

import math
from typing import NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schedules import MEGATRONS, SCHEDULES
from hcmegatron.config.schema import Parallel
from schedules.actions import Action, B, F, Kind
from schedules.descriptor import Descriptor
from schedules.placement import Placement
from schedules.plan import Schedule


def descriptor(parallel: Parallel) -> Descriptor:
    """What there is to know of the schedule without generating it."""
    return SCHEDULES[parallel.schedule]


def is_megatrons(parallel: Parallel) -> bool:
    """Whether Megatron's own runtime executes the schedule."""
    return parallel.schedule in MEGATRONS


def placement(parallel: Parallel) -> Placement:
    """Stage ids on ranks. Layers are shared out over `model_stages` stages."""
    return descriptor(parallel).placement(parallel.pipeline, parallel.virtual)


def first_micro_batches(parallel: Parallel, rank: int, microbatches: int) -> list[int]:
    """Of so many micro-batches of a step, the first that each chunk of pipeline rank `rank` sees."""
    where = placement(parallel)
    return [where.microbatches_of(stage, microbatches).start for stage in where.stages_of(rank)]


def training_schedule(parallel: Parallel, microbatches: int) -> Schedule:
    """The schedule that `parallel.schedule` names, for so many micro-batches; of Megatron's own, ours of the same kind.

    Raises:
        ConfigError: it cannot take so few micro-batches, or so many ranks.
    """
    try:
        return descriptor(parallel).schedule(parallel.pipeline, microbatches, parallel.virtual)
    except ValueError as error:
        raise ConfigError(
            f"parallel.schedule = {parallel.schedule} with parallel.pipeline = {parallel.pipeline} and "
            f"{microbatches} micro-batches: {error}; change training.global_batch or training.micro_batch"
        ) from None


class Held(NamedTuple):
    """(Micro-batch, stage) pairs that a rank holds: waiting for their backward, and between their I and their W."""

    live: int
    deferred: int


def most_held(parallel: Parallel, microbatches: int, rank: int) -> Held:
    """What pipeline rank `rank` holds when most micro-batches wait for their backward.

    Megatron's own schedules are counted as ours of the same kind.

    Args:
        microbatches: of one data-parallel rank in a step.
    """
    if parallel.pipeline == 1 and is_megatrons(parallel):
        return Held(1, 0)
    held = most = Held(0, 0)
    for action in training_schedule(parallel, microbatches).actions[rank]:
        for part in action.parts:
            match part.kind:
                case Kind.F:
                    held = Held(held.live + 1, held.deferred)
                    most = max(most, held)
                case Kind.B:
                    held = Held(held.live - 1, held.deferred)
                case Kind.I:
                    held = Held(held.live - 1, held.deferred + 1)
                case Kind.W:
                    held = Held(held.live, held.deferred - 1)
    return most


def evaluated_micro_batches(parallel: Parallel, microbatches: int) -> int:
    """The least number of micro-batches, `microbatches` or more, that the schedule can run forward.

    Two directions need as many in each, and Megatron's interleaved schedule groups of one per rank.
    """
    in_turn = descriptor(parallel).microbatches_multiple(parallel.pipeline)
    multiple = math.lcm(len(placement(parallel).paths), in_turn)
    return -(-microbatches // multiple) * multiple


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
