"""Messages between ranks of one machine through memory that they share: written once by the sender, read in place.

A message is copied into a slot of the sender's (shared_slots.py), and a record through a Unix socket says where it is
and wakes the receiver; so waiting costs no processor time, and the end of a peer is noticed at once. Word of two things
goes the other way: that a receive is posted, and that a slot is free again. Nobody is in a hurry for it: it leaves in
the record of the next message to the peer, before this rank waits for anybody, or when it is flushed. Small messages
are copied on the spot, large ones by a thread, which computes nothing else and needs the interpreter for two calls.
What is small depends on whether there are more cores than ranks.
"""

from __future__ import annotations

import os
import threading
import weakref
from datetime import timedelta
from queue import SimpleQueue

import torch
import torch.distributed as dist
from torch import Tensor

from schedules.costs import Link
from schedules.placement import Placement
from schedules.runtime.buffers import BufferPool
from schedules.runtime.link import EmulatedLink, sleep_until
from schedules.runtime.local_peers import connect
from schedules.runtime.shared_peer import Copy, Peer, copy_all
from schedules.runtime.shared_slots import Slot
from schedules.runtime.torch_distributed import channels_of, message_tag
from schedules.runtime.transport import Pending, Transport
from schedules.schedule import Message

COPIED_AT_ONCE = 1 << 17  # bytes: about as long as it takes to wake a thread
# The same where no core is free for a thread, which would take one from a rank that computes. Larger ones, of which a
# rank may wait for others while it is copied, are its still.
COPIED_AT_ONCE_ON_BUSY_CORES = 1 << 21
# Messages that are needed until they are given back, by id of their tensor.
_Lent = dict[int, tuple[Peer, Slot]]


class SharedMemoryTransport(Transport):
    """``group``'s rank r is rank r of the pipeline; all of them are on this machine, and tensors on its CPU. Creating
    one is collective over the group; it may serve several runtimes, one step at a time. Whoever drops it need not close
    it: connections and memory end with what was sent.

    ``link`` emulates a slower wire. ``timeout``: how long a message may take; None: torch's default.

    Unreachable on all ranks, if they cannot share memory; ValueError for a group of another size.
    """

    lends = keeps = True

    def __init__(
        self,
        group: dist.ProcessGroup,
        placement: Placement,
        link: Link | EmulatedLink | None = None,
        timeout: timedelta | None = None,
    ) -> None:
        if group.size() != placement.ranks:
            raise ValueError(
                f"a process group of {group.size()} ranks for a schedule of {placement.ranks}: "
                "the pipeline's group has to have one rank for each of the schedule's"
            )
        rank_of = placement.rank_of
        ends = {rank_of[stage] for pair in channels_of(placement, group.rank()) for stage in pair}
        copies: SimpleQueue[Copy | None] = SimpleQueue()
        limit = (timeout or dist.default_pg_timeout).total_seconds()
        spare = len(os.sched_getaffinity(0)) > group.size()
        at_once = COPIED_AT_ONCE if spare else COPIED_AT_ONCE_ON_BUSY_CORES
        self._holding: set[Peer] = set()
        self._peers = {
            rank: Peer(peer, limit, copies, at_once, self._holding)
            for rank, peer in connect(group, ends - {group.rank()}).items()
        }
        self._link = EmulatedLink(link) if isinstance(link, Link) else link
        self._lent: _Lent = {}
        self._expected: dict[int, _Expected] = {}  # by id of the tensor that stands for it
        self._at_once = at_once
        self._stop = weakref.finalize(self, copies.put, None)
        # peers that are in it hold themselves otherwise, and their connections
        weakref.finalize(self, self._holding.clear).atexit = False
        threading.Thread(target=copy_all, args=(copies,), name="message copies", daemon=True).start()

    def close(self) -> None:
        self._stop()
        while self._peers:
            self._peers.popitem()[1].close()

    def buffers(self, dtype: torch.dtype, device: torch.device) -> BufferPool:
        return _LentBuffers(self, self._lent, dtype, device)

    def send(self, message: Message, tensor: Tensor) -> Pending:
        peer, size = self._peers[message.target_rank], tensor.nbytes
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        if size > self._at_once and self.is_lent(tensor):
            tensor = tensor.clone()
        arrival = self._link.arrival(message.target_rank, size) if self._link else 0.0
        return peer.send(message_tag(message), tensor, size, arrival)

    def receive(self, message: Message, buffer: Tensor) -> Pending:
        peer, tag = self._peers[message.source_rank], message_tag(message)
        peer.post(tag)
        expected = self._expected.get(id(buffer)) or _Expected(buffer)
        return _Receive(peer, tag, expected, self._lent)

    def is_over(self, sent: Pending) -> bool:
        return sent.posted and sent.copied is None  # type: ignore[attr-defined]  # a Send

    def flush(self) -> None:
        for peer in list(self._holding):
            peer.let_go()

    @property
    def lent(self) -> int:
        """The number of slots whose messages are still needed."""
        return len(self._lent)

    @property
    def slots(self) -> int:
        """The number of slots that messages have come in."""
        return sum(len(peer.incoming) for peer in self._peers.values())

    def expect(self, buffer: Tensor) -> None:
        """Messages like ``buffer``, which has no memory, for which it will stand as long as the transport is there."""
        self._expected[id(buffer)] = _Expected(buffer)

    def is_lent(self, tensor: Tensor) -> bool:
        """Whether the tensor lies in a slot that will be used again."""
        address = tensor.data_ptr()
        return id(tensor) in self._lent or any(
            slot.address <= address < slot.end for _, slot in self._lent.values()
        )


class _LentBuffers(BufferPool):
    """What messages are received in: slots of their senders. Until one has come there is nothing but its shape."""

    def __init__(
        self, transport: SharedMemoryTransport, lent: _Lent, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(dtype, device)
        self._transport, self._lent = transport, lent
        self._by_shape: dict[tuple[int, ...], Tensor] = {}

    @property
    def in_use(self) -> int:
        return len(self._lent)

    @property
    def size(self) -> int:
        return self._transport.slots

    def take(self, shape: tuple[int, ...]) -> Tensor:
        expected = self._by_shape.get(shape)
        if expected is None:
            expected = self._by_shape[shape] = torch.empty(shape, dtype=self.dtype, device="meta")
            self._transport.expect(expected)
        return expected

    def give_back(self, buffer: Tensor) -> None:
        peer, slot = self._lent.pop(id(buffer))
        peer.free(slot.offset)

    def own(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if self._transport.is_lent(tensor) else tensor


class _Expected:
    """What a buffer says of the message that it is for. Asked once: between two actions every question costs."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.size = buffer, buffer.nbytes
        self.dtype, self.shape, self.is_lent = buffer.dtype, buffer.shape, buffer.is_meta


class _Receive:
    """``tensor``: the message, once it was waited for."""

    __slots__ = "_expected", "_lent", "_peer", "_tag", "tensor"

    def __init__(self, peer: Peer, tag: int, expected: _Expected, lent: _Lent) -> None:
        self._peer, self._tag, self._expected, self._lent = peer, tag, expected, lent
        self.tensor = expected.buffer

    def wait(self) -> None:
        peer, expected = self._peer, self._expected
        _, offset, capacity, size, arrival, _, _ = peer.next_arrived(self._tag)
        if size != expected.size:
            raise RuntimeError(f"{size} bytes of rank {peer.rank} came where {expected.size} were expected")
        if arrival:
            sleep_until(arrival)
        slot = peer.incoming.at(offset, capacity)
        message = slot.view(expected.dtype, expected.shape)
        if expected.is_lent:
            self.tensor = message
            self._lent[id(message)] = peer, slot
        else:
            self.tensor.copy_(message)
            peer.free(offset)
