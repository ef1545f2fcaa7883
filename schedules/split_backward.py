"""Backwards whose result another rank waits for, split: the gradient of the input leaves, then come the weights'.

A rank computes what it did, in the same order, and holds no more micro-batches. What changes is when gradients leave: a
W sooner, so that hops of up to a W hide behind it, and the ranks before begin their backwards sooner.
Of P stages of F, I and W alike, 1F1B takes (P - 1) W less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from schedules.actions import Action, I, Kind, W
from schedules.placement import Placement
from schedules.schedule import Schedule


def split_backward(schedule: Schedule) -> Schedule:
    """The schedule with I, and W right after it, in place of every B whose gradient goes to another rank. Pure.

    A B inside an FB stays: there the stage says what leaves when. So does one behind an I whose W is still to come, for
    a stage computes the weights' gradients in the order of the I. A valid schedule stays valid.
    """
    own = (tuple(_split(schedule.placement, actions)) for actions in schedule.actions)
    return replace(schedule, actions=tuple(own))


def _split(placement: Placement, actions: tuple[Action, ...]) -> Iterator[Action]:
    rank_of, waiting = placement.rank_of, Counter[int]()
    for action in actions:
        before, stage = placement.previous(action.stage), action.stage
        waiting[stage] += (action.kind is Kind.I) - (action.kind is Kind.W)
        sends = before is not None and rank_of[before] != rank_of[stage]
        if action.kind is Kind.B and sends and not waiting[stage]:
            yield I(action.stage, action.microbatch)
            yield W(action.stage, action.microbatch)
        else:
            yield action
