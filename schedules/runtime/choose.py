"""The transport between the ranks of a pipeline on CPUs: shared memory where they can share it, else gloo."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from schedules.costs import Link
from schedules.placement import Placement
from schedules.runtime.link import EmulatedLink
from schedules.runtime.local_peers import Unreachable
from schedules.runtime.shared_memory import SharedMemoryTransport
from schedules.runtime.torch_distributed import DistributedTransport
from schedules.runtime.transport import Transport


def cpu_transport(
    group: dist.ProcessGroup,
    placement: Placement,
    link: Link | EmulatedLink | None = None,
    timeout: timedelta | None = None,
) -> tuple[Transport, str]:
    """The faster one that can be had, the same on all ranks, and which that is in words, with the reason for gloo.

    Collective over the group, whose rank r is rank r of the pipeline. link, timeout: see SharedMemoryTransport.
    """
    try:
        return SharedMemoryTransport(group, placement, link, timeout), "shared memory"
    except Unreachable as error:
        return DistributedTransport(group, placement, torch.device("cpu"), link), f"gloo: {error}"
