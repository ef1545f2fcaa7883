"""Which stages of the network each pipeline rank holds under a configuration's schedule, the schedule itself, and the
most that a rank holds of it. Imports no torch; the trainer asks here too (pipeline.placement)."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schedule_names import MEGATRONS, SCHEDULES
from hcmegatron.config.schema import Config, Parallel, splits_backward
from schedules.actions import Kind
from schedules.descriptor import ScheduleDescriptor
from schedules.placement import Placement
from schedules.receives import receive_depths
from schedules.schedule import Schedule
from schedules.split_backward import split_backward


def descriptor(parallel: Parallel) -> ScheduleDescriptor:
    """What there is to know of the schedule without generating it."""
    return SCHEDULES[parallel.schedule]


def is_megatrons(parallel: Parallel) -> bool:
    """Whether Megatron's own runtime executes the schedule."""
    return parallel.schedule in MEGATRONS


def placement(parallel: Parallel) -> Placement:
    """Stage ids on ranks. Layers are shared out over `model_stages` stages."""
    return descriptor(parallel).placement(parallel.pipeline, parallel.virtual)


def training_schedule(config: Config, microbatches: int, lockstep: bool = False) -> Schedule:
    """The schedule that `parallel.schedule` names, for so many micro-batches, with backwards split as configured; of
    Megatron's own, ours of the same kind.

    Args:
        lockstep: pairs stay whole, for results that leave with both their halves.

    Raises:
        ConfigError: it cannot take so few micro-batches, or so many ranks.
    """
    parallel = config.parallel
    try:
        return _generated(*_asked(config, microbatches, lockstep))
    except ValueError as error:
        raise ConfigError(
            f"parallel.schedule = {parallel.schedule} with parallel.pipeline = {parallel.pipeline} and "
            f"{microbatches} micro-batches: {error}; change training.global_batch or training.micro_batch"
        ) from None


def channel_depths(config: Config, microbatches: int, lockstep: bool = False) -> dict[tuple[int, int], int]:
    """Of training_schedule, how many messages may be under way in each channel (schedules/receives.py)."""
    return _depths(_asked(config, microbatches, lockstep))


_Asked = tuple[str, int, int, int | None, bool, bool]


def _asked(config: Config, microbatches: int, lockstep: bool) -> _Asked:
    parallel = config.parallel
    how = splits_backward(config), parallel.overlap or lockstep
    return parallel.schedule, parallel.pipeline, microbatches, parallel.virtual, *how


@lru_cache(maxsize=64)
def _depths(asked: _Asked) -> dict[tuple[int, int], int]:
    return receive_depths(_generated(*asked))


@lru_cache(maxsize=64)  # a search asks for the same one for many ways to split tensors and experts
def _generated(
    name: str, ranks: int, microbatches: int, chunks: int | None, split: bool, overlapped: bool
) -> Schedule:
    schedule = SCHEDULES[name].schedule(ranks, microbatches, chunks)
    return split_backward(schedule, overlapped) if split else schedule


class Held(NamedTuple):
    """(Micro-batch, stage) pairs that a rank holds: waiting for their backward, and between their I and their W."""

    live: int
    deferred: int


def most_held(config: Config, microbatches: int, rank: int) -> Held:
    """What pipeline rank `rank` holds when most micro-batches wait for their backward.

    Megatron's own schedules are counted as ours of the same kind.

    Args:
        microbatches: of one data-parallel rank in a step.
    """
    if config.parallel.pipeline == 1 and is_megatrons(config.parallel):
        return Held(1, 0)
    held = most = Held(0, 0)
    for action in training_schedule(config, microbatches).actions[rank]:
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
