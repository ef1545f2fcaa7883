"""How long this thread has been ready to run while other threads and programs had the cores."""

from __future__ import annotations

from pathlib import Path

SCHEDSTAT = Path("/proc/thread-self/schedstat")  # ns on a core, ns waiting for one, time slices


def waited_ns() -> int:
    """Nanoseconds that this thread has been ready to run without running; 0 where the system does not say."""
    try:
        return int(SCHEDSTAT.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
