"""Messages between ranks of one machine through memory that they share: written once by the sender, read in place.

A message is copied into a slot of the sender's (shared_slots.py), and a record through a Unix socket says where it is
and wakes the receiver; so waiting costs no processor time, and the end of a peer is noticed at once. Two records go the
other way: that a receive is posted, and that a slot is free again. Small messages are copied on the spot, large ones by
a thread, which computes nothing else and needs the interpreter for two calls. What is small depends on whether there
are more cores than ranks.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import threading
import weakref
from collections import defaultdict, deque
from contextlib import suppress
from datetime import timedelta
from queue import SimpleQueue
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from schedules.costs import Link
from schedules.placement import Placement
from schedules.runtime.buffers import BufferPool
from schedules.runtime.link import EmulatedLink, sleep_until
from schedules.runtime.local_peers import LocalPeer, connect
from schedules.runtime.shared_slots import IncomingSlots, OutgoingSlots, Slot
from schedules.runtime.torch_distributed import channels_of, message_tag
from schedules.runtime.transport import Pending, Transport
from schedules.schedule import Message

COPIED_AT_ONCE = 1 << 17  # bytes: about as long as it takes to wake a thread
# The same where no core is free for a thread, which would take one from a rank that computes. Larger ones, of which a
# rank may wait for others while it is copied, are its still.
COPIED_AT_ONCE_ON_BUSY_CORES = 1 << 21
_SENT, _POSTED, _FREE = range(3)
_RECORD = struct.Struct(
    "=bqqqqd"
)  # kind, tag; offset and capacity of the slot, bytes, arrival on an emulated link
_Record = tuple[int, int, int, int, int, float]


class Gone(RuntimeError):
    """A peer has ended."""


class SharedMemoryTransport(Transport):
    """``group``'s rank r is rank r of the pipeline; all of them are on this machine, and tensors on its CPU. Creating
    one is collective over the group; it may serve several runtimes, one step at a time. Whoever drops it need not close
    it: connections and memory end with what was sent.

    ``link`` emulates a slower wire. ``timeout``: how long a message may take; None: torch's default.

    Unreachable on all ranks, if they cannot share memory; ValueError for a group of another size.
    """

    lends = True

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
        copies: SimpleQueue[_Copy | None] = SimpleQueue()
        limit = (timeout or dist.default_pg_timeout).total_seconds()
        spare = len(os.sched_getaffinity(0)) > group.size()
        at_once = COPIED_AT_ONCE if spare else COPIED_AT_ONCE_ON_BUSY_CORES
        self._peers = {
            rank: _Peer(peer, limit, copies, at_once)
            for rank, peer in connect(group, ends - {group.rank()}).items()
        }
        self._link = EmulatedLink(link) if isinstance(link, Link) else link
        self._lent: dict[int, tuple[_Peer, Slot]] = {}  # by address
        self._stop = weakref.finalize(self, copies.put, None)
        threading.Thread(target=_copy_all, args=(copies,), name="message copies", daemon=True).start()

    def close(self) -> None:
        self._stop()
        while self._peers:
            self._peers.popitem()[1].close()

    def buffers(self, dtype: torch.dtype, device: torch.device) -> BufferPool:
        return _LentBuffers(self, dtype, device)

    def send(self, message: Message, tensor: Tensor) -> Pending:
        peer, size = self._peers[message.target_rank], tensor.nbytes
        arrival = self._link.arrival(message.target_rank, size) if self._link else 0.0
        return peer.send(message_tag(message), tensor, size, arrival)

    def receive(self, message: Message, buffer: Tensor) -> Pending:
        peer, tag = self._peers[message.source_rank], message_tag(message)
        peer.post(tag)
        return _Receive(self, peer, tag, buffer)

    @property
    def slots(self) -> int:
        """The number of slots that messages have come in."""
        return sum(len(peer.incoming) for peer in self._peers.values())

    def lend(self, peer: _Peer, slot: Slot) -> None:
        """The slot holds a message that is needed, until it is given back."""
        self._lent[slot.address] = peer, slot

    def is_lent(self, tensor: Tensor) -> bool:
        """Whether the tensor lies in a slot that will be used again."""
        return tensor.untyped_storage().data_ptr() in self._lent

    @property
    def lent(self) -> int:
        """The number of slots whose messages are still needed."""
        return len(self._lent)

    def give_back(self, tensor: Tensor) -> None:
        """What was received in it is not needed any more."""
        peer, slot = self._lent.pop(tensor.untyped_storage().data_ptr())
        peer.free(slot.offset)


class _LentBuffers(BufferPool):
    """What messages are received in: slots of their senders. Until one has come there is nothing but its shape."""

    def __init__(self, transport: SharedMemoryTransport, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dtype, device)
        self._transport = transport
        self._expected: dict[tuple[int, ...], Tensor] = {}

    @property
    def in_use(self) -> int:
        return self._transport.lent

    @property
    def size(self) -> int:
        return self._transport.slots

    def take(self, shape: tuple[int, ...]) -> Tensor:
        expected = self._expected.get(shape)
        if expected is None:
            expected = self._expected[shape] = torch.empty(shape, dtype=self.dtype, device="meta")
        return expected

    def give_back(self, buffer: Tensor) -> None:
        self._transport.give_back(buffer)

    def own(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if self._transport.is_lent(tensor) else tensor


class _Peer:
    """A neighbour: the messages to it that it has posted no receive for, and those from it that nobody waited for."""

    def __init__(
        self, peer: LocalPeer, limit: float, copies: SimpleQueue[_Copy | None], at_once: int
    ) -> None:
        self.rank, self._limit, self._copies, self._at_once = peer.rank, limit, copies, at_once
        self._connection = peer.connection
        self._connection.settimeout(None)
        # The kernel's own, for with Python's every read takes a call more.
        timeval = struct.pack("@ll", int(limit), int(limit % 1 * 1e6))
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        # of whoever still sends, where the transport is dropped
        self.close = weakref.finalize(self, _close, peer)
        self.close.atexit = False  # the system does it
        self.outgoing, self.incoming = OutgoingSlots(peer.outgoing), IncomingSlots(peer.incoming)
        # by tag:
        self._unposted: dict[int, deque[_Send]] = defaultdict(deque)
        self._posted: dict[int, int] = defaultdict(int)  # receives that nothing was sent for
        self._arrived: dict[int, deque[_Record]] = defaultdict(deque)
        self._read = bytearray(_RECORD.size * 256)
        self._partial = 0  # bytes of a record whose rest is still to come

    def send(self, tag: int, tensor: Tensor, size: int, arrival: float) -> _Send:
        """Starts sending a contiguous tensor of ``size`` bytes."""
        slot = self.outgoing.take(size)
        if slot is None:
            self._take_in(socket.MSG_DONTWAIT)  # slots that have come back
            slot = self.outgoing.take(size) or self.outgoing.add(size)
        sent = _Send(self)
        if self._posted[tag]:
            self._posted[tag] -= 1
            sent.posted = True
        else:
            self._unposted[tag].append(sent)
        record = _RECORD.pack(_SENT, tag, slot.offset, slot.capacity, size, arrival)
        if size <= self._at_once:
            ctypes.memmove(slot.address, tensor.data_ptr(), size)
            self._write(record)
        else:
            sent.copied = copied = threading.Event()
            self._copies.put(_Copy(self, sent, copied, tensor, slot.address, size, record))
        return sent

    def next_arrived(self, tag: int) -> _Record:
        """The next message with the tag, waited for."""
        records = self._arrived[tag]
        while not records:
            self._take_in()
        return records.popleft()

    def wait_until_posted(self, sent: _Send) -> None:
        while not sent.posted:
            self._take_in()

    def post(self, tag: int) -> None:
        """A receive is."""
        self._write(_RECORD.pack(_POSTED, tag, 0, 0, 0, 0.0))

    def free(self, offset: int) -> None:
        """A slot of the peer's is not needed any more; nor by a peer that has done its part and ended."""
        with suppress(Gone):
            self._write(_RECORD.pack(_FREE, 0, offset, 0, 0, 0.0))

    def _write(self, record: bytes) -> None:
        """Where the peer has not read for long, reads on meanwhile: it may be waiting for the same."""
        while not self.put(record):
            if self._wait_for(select.POLLIN | select.POLLOUT) & select.POLLIN:
                self._take_in(socket.MSG_DONTWAIT)

    def write_from_thread(self, record: bytes) -> None:
        """Where the peer has not read for long, waits; what it may wait for is read by the others' thread."""
        while not self.put(record):
            self._wait_for(select.POLLOUT)

    def put(self, record: bytes) -> bool:
        """Whether the record has gone; False where the connection is full of unread ones. A record is too small to go
        in parts, whichever threads write."""
        try:
            self._connection.send(record, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._lost(error) from error
        return True

    def _wait_for(self, events: int) -> int:
        poll = select.poll()
        poll.register(self._connection, events)
        found = poll.poll(self._limit * 1e3)
        if not found:
            raise self._timed_out()
        return found[0][1]

    def _take_in(self, flags: int = 0) -> None:
        """Reads what has come; waits until something has, unless the flags say not to."""
        try:
            count = self._connection.recv_into(memoryview(self._read)[self._partial :], 0, flags)
        except BlockingIOError:
            if flags:
                return
            raise self._timed_out() from None
        except OSError as error:
            raise self._lost(error) from error
        if not count:
            raise self._lost("connection closed by peer")
        count += self._partial
        self._partial = count % _RECORD.size
        whole = count - self._partial
        for record in _RECORD.iter_unpack(memoryview(self._read)[:whole]):
            self._file(record)
        self._read[: self._partial] = self._read[whole:count]

    def _file(self, record: _Record) -> None:
        kind, tag, offset = record[:3]
        if kind == _SENT:
            self._arrived[tag].append(record)
        elif kind == _FREE:
            self.outgoing.give_back(offset)
        elif self._unposted[tag]:
            self._unposted[tag].popleft().posted = True
        else:
            self._posted[tag] += 1

    def _lost(self, why: object) -> Gone:
        return Gone(f"rank {self.rank} is gone: {why}")

    def _timed_out(self) -> RuntimeError:
        return RuntimeError(f"timed out after {self._limit:g} s without a word of rank {self.rank}")


def _close(peer: LocalPeer) -> None:
    peer.connection.close()
    os.close(peer.outgoing)
    os.close(peer.incoming)


class _Send:
    """Over when the tensor is copied and the receiver wants it: whoever waits runs no further ahead than it posts."""

    def __init__(self, peer: _Peer) -> None:
        self._peer = peer
        self.posted = False
        self.copied: threading.Event | None = None  # where a thread does it
        self.failure: RuntimeError | None = None

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.wait()
            if self.failure is not None:
                raise self.failure
        self._peer.wait_until_posted(self)


class _Receive:
    """``tensor``: the message, once it was waited for."""

    def __init__(self, transport: SharedMemoryTransport, peer: _Peer, tag: int, buffer: Tensor) -> None:
        self._transport, self._peer, self._tag = transport, peer, tag
        self.tensor = buffer

    def wait(self) -> None:
        peer, buffer = self._peer, self.tensor
        _, _, offset, capacity, size, arrival = peer.next_arrived(self._tag)
        if size != buffer.nbytes:
            raise RuntimeError(f"{size} bytes of rank {peer.rank} came where {buffer.nbytes} were expected")
        if arrival:
            sleep_until(arrival)
        slot = peer.incoming.at(offset, capacity)
        message = slot.view(buffer.dtype, buffer.shape)
        if buffer.is_meta:
            self._transport.lend(peer, slot)
            self.tensor = message
        else:
            buffer.copy_(message)
            peer.free(offset)


class _Copy(NamedTuple):
    """Work for the thread. It holds the tensor until it is done."""

    peer: _Peer
    sent: _Send
    copied: threading.Event
    tensor: Tensor
    address: int
    size: int
    record: bytes


def _copy_all(copies: SimpleQueue[_Copy | None]) -> None:
    """What the thread does, until it is given None."""
    while (copy := copies.get()) is not None:
        ctypes.memmove(copy.address, copy.tensor.data_ptr(), copy.size)
        try:
            copy.peer.write_from_thread(copy.record)
        except RuntimeError as error:
            copy.sent.failure = error
        copy.copied.set()
        del copy  # and the tensor
