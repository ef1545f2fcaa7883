"""Signals between a command and the processes that it starts: what it passes on, and what they get when it ends. No
torch."""

from __future__ import annotations

import ctypes
import signal

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the process that started it ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
