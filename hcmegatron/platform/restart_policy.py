"""Whether a run that has ended is started again, and when: given what happened before. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

HOUR_S = 3600.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
SAME_STEP = 3  # ends after the same step, after which another start would only be one more


class Life(NamedTuple):
    """One start of the run, from its ranks' start to their end.

    Attributes:
        ended: seconds, of any clock.
        reached: the steps that were done, this life's and those before; None: it did not come to have its weights.
        dead: it ended by a rank's death, or a hang. Not: finished, told to stop, a user's mistake, diverged.
    """

    ended: float
    reached: int | None
    dead: bool


class Again(NamedTuple):
    """Start it again, after so many seconds."""

    wait: float


class Enough(NamedTuple):
    """Do not; why, in words, or "" where that is clear from how it ended."""

    why: str


def next_move(lives: Sequence[Life], limit: int) -> Again | Enough:
    """What to do after the last of `lives`.

    Waits double from FIRST_WAIT_S to LONGEST_WAIT_S while no life comes further than those before it.

    Args:
        lives: all of them, the first one first; at least one.
        limit: how often it may be started again within any hour.
    """
    last = lives[-1]
    if not last.dead:
        return Enough("")
    same = len(list(takewhile(lambda life: life.reached == last.reached, reversed(lives))))
    if same >= SAME_STEP:
        where = "before its weights were there" if last.reached is None else f"after step {last.reached}"
        return Enough(f"it ended {same} times in a row {where}, so another start would not help")
    # Each end but those of an hour ago and more was followed by a start, save for the last.
    recent = sum(last.ended - life.ended < HOUR_S for life in lives[:-1])
    if recent >= limit:
        return Enough(f"it was started again {recent} times within an hour, and --restarts={limit}")
    return Again(min(FIRST_WAIT_S * 2 ** _in_vain(lives), LONGEST_WAIT_S))


def _in_vain(lives: Sequence[Life]) -> int:
    """How many lives have ended since one came further than all before it."""
    furthest, count = -1, -1
    for life in lives:
        reached = -1 if life.reached is None else life.reached
        count = 0 if reached > furthest else count + 1
        furthest = max(furthest, reached)
    return max(count, 0)
