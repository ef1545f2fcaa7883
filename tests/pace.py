"""How slow a machine is just now, for limits in processor seconds: other load slows down even one's own seconds, by
caches and clocks that are shared."""

from __future__ import annotations

import heapq
import os
import time

NOMINAL = 0.05  # processor seconds of `work` on a quiet core of the machine on which limits were set


def work() -> float:
    """Processor seconds of a fixed piece of Python: objects, dictionaries, a heap, as planning and simulation use."""
    began = time.process_time()
    heap: list[tuple[float, int]] = []
    seen: dict[tuple[int, int], float] = {}
    for number in range(60_000):
        place = number % 997, number % 991
        seen[place] = seen.get(place, 0.0) + number * 0.5
        heapq.heappush(heap, (seen[place] % 1013.0, number))
        if len(heap) > 512:
            heapq.heappop(heap)
    return time.process_time() - began


def pace() -> float:
    """How many times as long as on that machine Python takes here and now; 1 where it is as quick or quicker."""
    return max(1.0, min(work() for _ in range(3)) / NOMINAL)


def too_busy() -> str:
    """What keeps one from timing anything that waits here, in words; "" where nothing does.

    Load is what this machine's other programs ask for; what other machines on the same processor take shows in the
    pace alone.
    """
    load, cores, slower = os.getloadavg()[0], os.cpu_count() or 1, pace()
    if load > 2 * cores:
        return f"other programs load the {cores} cores {load:.0f} times"
    return f"Python takes {slower:.1f} times as long as on a quiet machine" if slower > 1.5 else ""
