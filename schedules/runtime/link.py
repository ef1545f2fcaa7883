"""An emulated link: messages take as long as on a slower wire, and nobody burns a core meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from schedules.costs import Link


class EmulatedLink:
    """One rank's outgoing side. ``link`` has its latency in seconds and its bandwidth in bytes per second;
    messages to one peer queue for the bandwidth, those to different peers do not.

    ``clock`` says when what is sent now is ready: later than now where computation is emulated too.

    The sender says when a message arrives, and the receiver does not look at it before. Both read the
    monotonic clock of one machine.
    """

    def __init__(self, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self.link, self._clock = link, clock
        self._free: dict[int, float] = {}

    def arrival(self, target_rank: int, size: int) -> float:
        """When ``size`` bytes sent now arrive at the peer, on the monotonic clock."""
        starts = max(self._clock(), self._free.get(target_rank, 0.0))
        self._free[target_rank] = starts + size / self.link.bandwidth
        return self._free[target_rank] + self.link.latency


def sleep_until(arrival: float) -> None:
    """Returns at once if the time has passed."""
    left = arrival - time.monotonic()
    if left > 0:
        time.sleep(left)
