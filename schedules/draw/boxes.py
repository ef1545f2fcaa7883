"""What the pictures share: an action as boxes, and which of a rank's chunks it belongs to."""

from collections.abc import Iterator
from typing import NamedTuple

from schedules.actions import Kind
from schedules.placement import Placement
from schedules.timeline import Timed


class Box(NamedTuple):
    """A plain action's rectangle. ``lane`` 0 is the full height; the halves of an FB that run at the same
    time get 1, upper, for the forward and 2, lower, for the backward."""

    kind: Kind
    stage: int
    microbatch: int
    start: float
    end: float
    lane: int


def action_boxes(timed: Timed) -> Iterator[Box]:
    action = timed.action
    if action.overlapped is None:
        yield Box(action.kind, action.stage, action.microbatch, timed.start, timed.end, 0)
        return
    backward = action.overlapped
    together = timed.backward_start < timed.forward_end
    yield Box(Kind.F, action.stage, action.microbatch, timed.start, timed.forward_end, int(together))
    yield Box(Kind.B, backward.stage, backward.microbatch, timed.backward_start, timed.end, 2 * together)


def chunk_of(placement: Placement) -> tuple[int, ...]:
    """By stage id: the how-manieth of its rank's stages it is. DualPipe's second direction is 1 on every
    rank."""
    if len(placement.paths) > 1:
        return tuple(placement.path_of(stage) for stage in range(placement.stages))
    return tuple(placement.stages_of(rank).index(stage) for stage, rank in enumerate(placement.rank_of))
