"""One event loop for all of a process's gloo groups.

torch gives every gloo group a device of its own, which is a thread that wakes a hundred times a second whether there
is anything to do or not. Megatron makes some twenty groups. A device serves any number of groups; here all groups of a
process get the same. What that saves: docs/pipeline.md, Threads of idle groups.
"""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

NEEDED = ("_Options", "create_device", "create_default_device")


@cache
def _devices(interfaces: str, process: int) -> tuple[Any, ...]:
    """As torch makes them: of every interface named in GLOO_SOCKET_IFNAME, or of what this machine's name stands for.
    After a fork the parent's are of no use, so a process has its own."""
    gloo = distributed_c10d.ProcessGroupGloo
    if interfaces:
        return tuple(gloo.create_device(interface=name) for name in interfaces.split(","))
    return (gloo.create_default_device(),)


@cache
def share_event_loop() -> None:
    """From now on the gloo groups that torch makes in this process share a device. Where this torch makes groups
    otherwise, it is said, and they have one each."""
    if not dist.is_gloo_available():
        return
    gloo = distributed_c10d.ProcessGroupGloo
    if lacking := [name for name in NEEDED if not hasattr(gloo, name)]:
        warnings.warn(
            f"torch {torch.__version__} has no ProcessGroupGloo.{lacking[0]}: every gloo group has a thread of its own",
            stacklevel=2,
        )
        return
    of_torch = gloo.__init__

    # The class stays torch's, which it asks groups for later (as to change their time limits); so its own way of making
    # one is what is given another device.
    def made(group: Any, store: Any, rank: int, size: int, *options: Any, **named: Any) -> None:
        timeout = named.get("timeout", options[0] if options else None)
        if not isinstance(timeout, timedelta):
            of_torch(group, store, rank, size, *options, **named)
            return
        chosen = gloo._Options()
        chosen._devices = list(_devices(os.environ.get("GLOO_SOCKET_IFNAME", ""), os.getpid()))
        chosen._threads = 2 * len(chosen._devices)  # as torch has them
        chosen._timeout = timeout
        of_torch(group, store, rank, size, chosen)

    gloo.__init__ = made
