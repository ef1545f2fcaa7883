"""Where a rank is in its schedule, in words that help when nothing moves any more."""

from __future__ import annotations

import time

from schedules.runtime.program import Op
from schedules.schedule import Message


class Position:
    """Written by the rank as it goes (a few attributes, no locks), read by a watchdog at any time.

    ``index``: of the action in progress, behind the last one while the last messages leave; ``waiting``: for this
    message, set by P2PChannels while it does; ``since``: the time of the last sign of progress.
    """

    def __init__(self, name: str, rank: int, ops: tuple[Op, ...]) -> None:
        self.name, self.rank, self._ops = name, rank, ops
        self.step = 0
        self.index = 0
        self.active = False
        self.waiting: Message | None = None
        self.since = time.monotonic()

    def begin_step(self) -> None:
        self.step += 1
        self.index, self.waiting = 0, None
        self.since = time.monotonic()
        self.active = True  # last: from now on a watchdog looks at `since`

    def end_step(self) -> None:
        self.active = False
        self.since = time.monotonic()

    @property
    def idle(self) -> float:
        """Seconds since the last sign of progress; 0 outside of a step."""
        return time.monotonic() - self.since if self.active else 0.0

    def __str__(self) -> str:
        where = f"rank {self.rank}, {self.name}"
        seconds = f"{time.monotonic() - self.since:.1f} s"
        if self.step == 0:
            return f"{where}: before its first step"
        where += f", step {self.step}"
        if not self.active:
            return f"{where}: finished all {len(self._ops)} actions {seconds} ago"
        index, message = self.index, self.waiting  # once each, since the rank goes on meanwhile
        if index == len(self._ops):
            where += f": after its last action ({len(self._ops)} of {len(self._ops)})"
        else:
            where += f": action {index + 1} of {len(self._ops)}, {self._ops[index].action}"
        if message is None:
            return f"{where}, computing for {seconds}"
        if message.source_rank == self.rank:
            return f"{where}, waiting for rank {message.target_rank} to receive the {message}, for {seconds}"
        return f"{where}, waiting for the {message} (rank {message.source_rank}), for {seconds}"
