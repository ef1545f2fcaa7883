"""One event loop for all of a process's gloo groups.

torch gives every gloo group a device of its own, which is a thread that wakes a hundred times a second whether there
is anything to do or not. Megatron makes some twenty groups, so that the ranks of a machine are interrupted two thousand
times a second each: measured, 5 to 9% of a step of two ranks on two cores (docs/benchmarks.md). A device serves any
number of groups; here all of a process get the same.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d


@cache
def _devices(interfaces: str, process: int) -> tuple[Any, ...]:
    """As torch makes them: of every interface named in GLOO_SOCKET_IFNAME, or of what this machine's name stands for.
    After a fork the parent's are of no use, so a process has its own."""
    of_gloo = _OF_TORCH
    if interfaces:
        return tuple(of_gloo.create_device(interface=name) for name in interfaces.split(","))
    return (of_gloo.create_default_device(),)


def share_event_loop() -> None:
    """From now on the gloo groups of this process share a device. Again: nothing.

    Raises:
        RuntimeError: this torch makes groups otherwise.
    """
    if not dist.is_gloo_available() or issubclass(distributed_c10d.ProcessGroupGloo, _OneLoop):
        return
    for owner, name in (
        (_OF_TORCH, "_Options"),
        (_OF_TORCH, "create_device"),
        (_OF_TORCH._Options, "_devices"),
    ):
        if not hasattr(owner, name):
            raise RuntimeError(
                f"gloo: {owner.__name__} has no attribute {name!r}; torch {torch.__version__} is newer than this "
                "adapter knows"
            )
    distributed_c10d.ProcessGroupGloo = _OneLoop  # type: ignore[misc]


if dist.is_gloo_available():
    _OF_TORCH: Any = distributed_c10d.ProcessGroupGloo

    class _OneLoop(_OF_TORCH):
        """torch's, called as torch calls it when it makes a group."""

        def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
            options = _OF_TORCH._Options()
            options._devices = list(_devices(os.environ.get("GLOO_SOCKET_IFNAME", ""), os.getpid()))
            options._threads = 2 * len(options._devices)  # as torch has them
            options._timeout = timeout
            super().__init__(store, rank, size, options)
