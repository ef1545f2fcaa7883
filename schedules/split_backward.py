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


def split_backward(schedule: Schedule, overlapped: bool = False) -> Schedule:
    """The schedule with I, and W right after it, in place of every B whose gradient goes to another rank. Pure.

    So of an FB is made F, I and W, which is the order in which stages run it that do not overlap its halves. A B behind
    an I whose W is still to come stays, for a stage computes the weights' gradients in the order of the I. A valid
    schedule stays valid.

    Args:
        overlapped: stages overlap the halves of an FB, and say themselves what leaves when: it stays.
    """
    own = (tuple(_split(schedule.placement, actions, overlapped)) for actions in schedule.actions)
    return replace(schedule, actions=tuple(own))


def _split(placement: Placement, actions: tuple[Action, ...], overlapped: bool) -> Iterator[Action]:
    rank_of, waiting = placement.rank_of, Counter[int]()
    for action in actions:
        *forward, last = action.parts
        before = placement.previous(last.stage)
        waiting[last.stage] += (last.kind is Kind.I) - (last.kind is Kind.W)
        sends = before is not None and rank_of[before] != rank_of[last.stage]
        whole = last.kind is not Kind.B or (forward and overlapped)
        if whole or not sends or waiting[last.stage]:
            yield action
        else:
            yield from (*forward, I(last.stage, last.microbatch), W(last.stage, last.microbatch))
