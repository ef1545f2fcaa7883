"""Whether somebody works in a directory: who does holds the lock of a file in it. No torch."""

from __future__ import annotations

import fcntl
from pathlib import Path


def held(lock: Path) -> bool | None:
    """Whether a job holds the lock, which a job that begins would wait for much longer than this takes. None where its
    file system has no locks."""
    try:
        with lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False
