"""Messages between ranks of one machine through memory that they share: written once by the sender, read in place.

A message is copied into a slot of the sender's (shared_slots.py), and a record through a Unix socket says where it is
and wakes the receiver; so waiting costs no processor time, and the end of a peer is noticed at once. Two records go the
other way: that a receive is posted, and that a slot is free again. Nobody is in a hurry for those: they leave with the
next message to the peer, before this rank waits for anybody, or when they are flushed. Small messages are copied on the
spot, large ones by a thread, which computes nothing else and needs the interpreter for two calls. What is small depends
on whether there are more cores than ranks.
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
_MOST_HELD = 64  # records: less than what a socket takes in one piece
_SENT, _POSTED, _FREE = range(3)
_RECORD = struct.Struct(
    "=bqqqqd"
)  # kind, tag; offset and capacity of the slot, bytes, arrival on an emulated link
_Record = tuple[int, int, int, int, int, float]
# Messages that are needed until they are given back, by id of their tensor.
_Lent = dict[int, "tuple[_Peer, Slot]"]


class Gone(RuntimeError):
    """A peer has ended."""


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
        copies: SimpleQueue[_Copy | None] = SimpleQueue()
        limit = (timeout or dist.default_pg_timeout).total_seconds()
        spare = len(os.sched_getaffinity(0)) > group.size()
        at_once = COPIED_AT_ONCE if spare else COPIED_AT_ONCE_ON_BUSY_CORES
        self._holding: set[_Peer] = set()
        self._peers = {
            rank: _Peer(peer, limit, copies, at_once, self._holding)
            for rank, peer in connect(group, ends - {group.rank()}).items()
        }
        self._link = EmulatedLink(link) if isinstance(link, Link) else link
        self._lent: _Lent = {}
        self._expected: dict[int, _Expected] = {}  # by id of the tensor that stands for it
        self._at_once = at_once
        self._stop = weakref.finalize(self, copies.put, None)
        # peers that are in it hold themselves otherwise, and their connections
        weakref.finalize(self, self._holding.clear).atexit = False
        threading.Thread(target=_copy_all, args=(copies,), name="message copies", daemon=True).start()

    def close(self) -> None:
        self._stop()
        while self._peers:
            self._peers.popitem()[1].close()

    def buffers(self, dtype: torch.dtype, device: torch.device) -> BufferPool:
        return _LentBuffers(self, dtype, device)

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

    def flush(self) -> None:
        for peer in list(self._holding):
            peer.let_go()

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

    @property
    def lent(self) -> int:
        """The number of slots whose messages are still needed."""
        return len(self._lent)

    def give_back(self, tensor: Tensor) -> None:
        """What was received in it is not needed any more."""
        peer, slot = self._lent.pop(id(tensor))
        peer.hold(_FREE, 0, slot.offset)


class _LentBuffers(BufferPool):
    """What messages are received in: slots of their senders. Until one has come there is nothing but its shape."""

    def __init__(self, transport: SharedMemoryTransport, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dtype, device)
        self._transport = transport
        self._by_shape: dict[tuple[int, ...], Tensor] = {}

    @property
    def in_use(self) -> int:
        return self._transport.lent

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
        self._transport.give_back(buffer)

    def own(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if self._transport.is_lent(tensor) else tensor


class _Peer:
    """A neighbour: the messages to it that it has posted no receive for, and those from it that nobody waited for.

    Records that it can do without for a while are held back; ``holding`` has the peers for which there are any. Of
    receives that is one at most, and this rank never waits for a message with records held back. What its sender may
    not send without that one comes more than a channel's depth after the message that this rank took up before it
    posted. In every order in which the schedule can run with so few messages in a channel, this rank's action with that
    message, and all that it needs of others, is over by then: so holding back locks nobody up.
    """

    def __init__(
        self,
        peer: LocalPeer,
        limit: float,
        copies: SimpleQueue[_Copy | None],
        at_once: int,
        holding: set[_Peer],
    ) -> None:
        self.rank, self._limit, self._copies, self._at_once = peer.rank, limit, copies, at_once
        self._holding = holding
        self._held: list[tuple[int, int, int]] = []  # kind, tag and offset, of which the rest is 0
        self._held_post: int | None = None  # its tag
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
            self._write(self._with_held(record))
        else:
            self.let_go()  # what is held back does not wait for copies
            sent.copied = copied = threading.Event()
            self._copies.put(_Copy(self, sent, copied, tensor, slot.address, size, record))
        return sent

    def next_arrived(self, tag: int) -> _Record:
        """The next message with the tag, waited for."""
        records = self._arrived[tag]
        while not records:
            self._wait()
        if self._held_post == tag:  # whose sender was quicker, and may be waiting
            self.let_go()
        return records.popleft()

    def wait_until_posted(self, sent: _Send) -> None:
        while not sent.posted:
            self._wait()

    def post(self, tag: int) -> None:
        """A receive is."""
        if self._held_post is not None:
            self.let_go()
        self._held_post = tag
        self.hold(_POSTED, tag, 0)

    def let_go(self) -> None:
        """Of what is held back. A peer that has done its part and ended needs it no more; if it has not done it, that
        comes out as soon as anything of it is waited for."""
        with suppress(Gone):
            self._write(self._with_held(b""))

    def hold(self, kind: int, tag: int, offset: int) -> None:
        """A record back: of a receive, or of the peer's slot, which is not needed any more."""
        self._held.append((kind, tag, offset))
        self._holding.add(self)
        if len(self._held) == _MOST_HELD:
            self.let_go()

    def _with_held(self, record: bytes) -> bytes:
        """Behind what was held back, which leaves with it."""
        if not self._held:
            return record
        self._holding.remove(self)
        self._held_post = None
        held, self._held = self._held, []
        return b"".join([*(_RECORD.pack(*each, 0, 0, 0.0) for each in held), record])

    def let_all_go(self) -> None:
        """Of what is held back from any peer, since this rank is about to wait."""
        for peer in list(self._holding):
            peer.let_go()

    def _write(self, records: bytes) -> None:
        """Where the peer has not read for long, reads on meanwhile: it may be waiting for the same."""
        while not self.put(records):
            self.let_all_go()
            if self._wait_for(select.POLLIN | select.POLLOUT) & select.POLLIN:
                self._take_in(socket.MSG_DONTWAIT)

    def write_from_thread(self, records: bytes) -> None:
        """Where the peer has not read for long, waits; what it may wait for is read by the others' thread."""
        while not self.put(records):
            self._wait_for(select.POLLOUT)

    def put(self, records: bytes) -> bool:
        """Whether they have gone; False where the connection is full of unread ones. So few are too small to go in
        parts, whichever threads write."""
        try:
            self._connection.send(records, socket.MSG_DONTWAIT)
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

    def _wait(self) -> None:
        """For what comes next; but the first time, if nothing has come, only lets go of what others may wait for."""
        if not self._holding:
            self._take_in()
        elif not self._take_in(socket.MSG_DONTWAIT):
            self.let_all_go()

    def _take_in(self, flags: int = 0) -> bool:
        """Reads what has come; waits until something has, unless the flags say not to. Whether something had."""
        try:
            count = self._connection.recv_into(memoryview(self._read)[self._partial :], 0, flags)
        except BlockingIOError:
            if flags:
                return False
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
        return True

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
            if not self.copied.is_set():
                self._peer.let_all_go()
                self.copied.wait()
            if self.failure is not None:
                raise self.failure
        self._peer.wait_until_posted(self)


class _Expected:
    """What a buffer says of the message that it is for. Asked once: between two actions every question costs."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.size = buffer, buffer.nbytes
        self.dtype, self.shape, self.is_lent = buffer.dtype, buffer.shape, buffer.is_meta


class _Receive:
    """``tensor``: the message, once it was waited for."""

    def __init__(self, peer: _Peer, tag: int, expected: _Expected, lent: _Lent) -> None:
        self._peer, self._tag, self._expected, self._lent = peer, tag, expected, lent
        self.tensor = expected.buffer

    def wait(self) -> None:
        peer, expected = self._peer, self._expected
        _, _, offset, capacity, size, arrival = peer.next_arrived(self._tag)
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
            peer.hold(_FREE, 0, offset)


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
