"""Imports without the garbage collector. No torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_ours = False


def process_is_ours() -> None:
    """This process was started by the command, or for it: no caller's objects are in it."""
    global _ours
    _ours = True


@contextmanager
def uncollected() -> Iterator[None]:
    """While torch and Megatron-Core are imported: half a million objects, of which next to nothing is garbage, and
    which the collector would go through over and over, for a third of the time that the import takes.

    In a process of the command's own what is there afterwards stays for good, so the collector passes it by from then
    on: in every step, at the end, and in forks, which therefore go on sharing its memory.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if _ours:
            gc.freeze()
        if was:
            gc.enable()
