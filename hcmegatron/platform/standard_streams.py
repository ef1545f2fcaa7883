"""Standard streams that may be closed, full, or read by nobody any more: never a reason to end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable


def stand_in_for_closed() -> None:
    """Put the null device where standard input, output or error is closed (`train >&-`).

    The next file or socket that is opened would get its number, and be written to by whoever prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def tell(text: str) -> None:
    """A line on standard error, in one write so that lines of several ranks do not mix.

    Where standard error takes nothing, there is nobody left to tell.
    """
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        silence(2)


def warn(warnings: Iterable[str]) -> None:
    """A line for each on standard error."""
    for warning in warnings:
        tell(f"hcmegatron: warning: {warning}")


def silence(number: int) -> None:
    """Let the null device take what standard output (1) or error (2) can no longer, such as the flush at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
