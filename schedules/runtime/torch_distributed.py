"""Messages as torch.distributed point-to-point operations: gloo between CPUs, NCCL between GPUs.

Gloo tells messages apart by a tag. NCCL ignores tags and matches the operations of a group by their order, so
every channel gets a process group of its own, and with it a communicator and a (high-priority) stream: order
matters within a channel only, where the validated schedule guarantees it, and a message that nobody receives
yet blocks no other channel.
"""

from __future__ import annotations

import time
from datetime import timedelta
from functools import cache
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from schedules.actions import Kind
from schedules.costs import Link
from schedules.placement import Placement
from schedules.runtime.gpu import GPU
from schedules.runtime.groups import groups_of_all
from schedules.runtime.link import EmulatedLink, sleep_until
from schedules.runtime.transport import Pending, Transport
from schedules.schedule import Message

MOST_CHANNELS = 32  # of a rank, on CUDA: torch's streams of the priority that channels have
_MICROBATCHES, _STAGES = 1 << 17, 1 << 12  # what a tag of 31 bits has room for


class _PointToPoint(Protocol):
    """What gloo's backend answers, which torch annotates as a Backend of no particular kind."""

    def send(self, tensors: list[Tensor], rank: int, tag: int, /) -> Pending: ...

    def recv(self, tensors: list[Tensor], rank: int, tag: int, /) -> Pending: ...


class DistributedTransport(Transport):
    """``group``'s rank r is rank r of the pipeline. Creating one is collective over the group, on CUDA over all
    ranks of the job, each with its own pipeline's group; it may serve several runtimes, one step at a time.
    ``close`` ends the groups that it has made; ending torch.distributed ends them too.

    ``device`` is where the tensors are: CPU needs a group that gloo serves, CUDA one of NCCL's. ``link`` (CPU
    only) emulates a slower wire between the processes of one machine. ``timeout`` (CUDA; on CPU it is the
    group's own): how long a message may take. A step is over for the host once it is enqueued, so that a peer
    that is lost after that is noticed by NCCL alone, after this time; None: torch's default.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        placement: Placement,
        device: torch.device,
        link: Link | EmulatedLink | None = None,
        timeout: timedelta | None = None,
    ) -> None:
        if group.size() != placement.ranks:
            raise ValueError(
                f"a process group of {group.size()} ranks for a schedule of {placement.ranks}: "
                "the pipeline's group has to have one rank for each of the schedule's"
            )
        if link is not None and device.type != "cpu":
            raise ValueError(f"an emulated link works between CPU tensors only, not on {device}")
        on_gpu = self.receives_occupy_device = device.type == "cuda"
        # Gloo itself, and its send and recv in place of dist.isend and irecv: what comes between takes as long
        # as the call.
        self._gloo = None if on_gpu else cast(_PointToPoint, group._get_backend(device))
        self._link = EmulatedLink(link) if isinstance(link, Link) else link
        self._channels = _channel_groups(group, placement, device, timeout) if on_gpu else {}

    def close(self) -> None:
        while self._channels:
            dist.destroy_process_group(self._channels.popitem()[1])

    def send(self, message: Message, tensor: Tensor) -> Pending:
        if self._gloo is None:
            group = self._channels[message.channel]
            return _NcclSend(group.send([tensor], 1 - group.rank(), 0), tensor)
        tag = message_tag(message)
        work = self._gloo.send([tensor], message.target_rank, tag)
        if self._link is None:
            return work
        arrival = self._link.arrival(message.target_rank, tensor.nbytes)
        stamp = torch.tensor([arrival], dtype=torch.float64)
        return _StampedSend(work, self._gloo.send([stamp], message.target_rank, tag + 1), stamp)

    def receive(self, message: Message, buffer: Tensor) -> Pending:
        if self._gloo is None:
            group = self._channels[message.channel]
            return group.recv([buffer], 1 - group.rank(), 0)
        tag = message_tag(message)
        work = self._gloo.recv([buffer], message.source_rank, tag)
        if self._link is None:
            return work
        stamp = torch.empty(1, dtype=torch.float64)
        return _StampedReceive(work, self._gloo.recv([stamp], message.source_rank, tag + 1), stamp)


@cache
def message_tag(message: Message) -> int:
    """Tells it from all others of a step. Even, so that the next one is free for the stamp of an emulated link."""
    if message.microbatch >= _MICROBATCHES or message.source >= _STAGES:
        raise ValueError(f"{message}: tags have room for {_MICROBATCHES} micro-batches and {_STAGES} stages")
    return ((message.microbatch * _STAGES + message.source) * 2 + (message.payload is Kind.B)) * 2


def channels(placement: Placement) -> list[tuple[int, int]]:
    """(source, target) stage ids of every channel between two ranks, in an order that all ranks share."""
    rank_of = placement.rank_of
    found = []
    for first in range(placement.stages):
        second = placement.next(first)
        if second is not None and rank_of[first] != rank_of[second]:
            found += [(first, second), (second, first)]
    return found


def channels_of(placement: Placement, rank: int) -> list[tuple[int, int]]:
    """Those into and out of a rank."""
    rank_of = placement.rank_of
    return [pair for pair in channels(placement) if rank in (rank_of[pair[0]], rank_of[pair[1]])]


def _channel_groups(
    group: dist.ProcessGroup, placement: Placement, device: torch.device, timeout: timedelta | None
) -> dict[tuple[int, int], dist.ProcessGroup]:
    """A group of two ranks for every channel of this rank. All ranks of the job make the groups of all pipelines
    (see groups.groups_of_all): for those that do not belong to a group it is a line in a table.

    NCCL connects a pair at its first message, and both hosts wait there: in a schedule that would deadlock,
    so each channel carries one message here.
    """
    mine = channels_of(placement, group.rank())
    if len(mine) > MOST_CHANNELS:
        raise ValueError(
            f"rank {group.rank()} has {len(mine)} channels, and torch {MOST_CHANNELS} streams for them: two would "
            "share one, and could wait for each other; put fewer stages on a rank"
        )
    members = tuple(dist.get_process_group_ranks(group))
    rank_of, own = placement.rank_of, {}
    for pipeline in groups_of_all(members, device):
        for source, target in channels(placement):
            pair = dist.new_group(
                sorted((pipeline[rank_of[source]], pipeline[rank_of[target]])),
                timeout=timeout,
                backend=GPU.backend,
                pg_options=GPU.channel_options(timeout),
                group_desc=f"channel {source}>{target}",
            )
            if pipeline == members and (source, target) in mine:
                own[source, target] = pair
    for (source, _), pair in own.items():
        token = torch.zeros(1, device=device)
        move = pair.send if rank_of[source] == group.rank() else pair.recv
        move([token], 1 - pair.rank(), 0).wait()
    GPU.synchronize()
    return own


class _NcclSend:
    """Waiting for NCCL's work would hold up the compute stream, not the host: so the host looks instead.

    Work is completed when it has failed, too. Its ``wait`` raises then, and otherwise holds up nothing any more.
    """

    def __init__(self, work: dist.Work, tensor: Tensor) -> None:
        self._work, self._tensor = work, tensor

    def wait(self) -> None:
        while not self._work.is_completed():
            time.sleep(50e-6)
        self._work.wait()


class _StampedSend:
    def __init__(self, work: Pending, stamp_work: Pending, stamp: Tensor) -> None:
        self._work, self._stamp_work, self._stamp = work, stamp_work, stamp

    def wait(self) -> None:
        self._work.wait()
        self._stamp_work.wait()


class _StampedReceive:
    def __init__(self, work: Pending, stamp_work: Pending, stamp: Tensor) -> None:
        self._work, self._stamp_work, self._stamp = work, stamp_work, stamp

    def wait(self) -> None:
        self._work.wait()
        self._stamp_work.wait()
        sleep_until(float(self._stamp))
