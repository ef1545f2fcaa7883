"""A neighbour in shared memory, and what goes through the socket to it: records of 56 bytes, each of a message that
lies in a slot, of a receive that is posted, and of a slot that is free again, or of some of these."""

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
from queue import SimpleQueue
from typing import NamedTuple

from torch import Tensor

from schedules.runtime.local_peers import LocalPeer
from schedules.runtime.shared_slots import IncomingSlots, OutgoingSlots

MOST_FREED = 64  # slots: their records are less than what a socket takes in one piece
NONE = -1  # in place of a tag or an offset
# Of a message its tag, offset and capacity of its slot, bytes, arrival on an emulated link; the tag of a receive that
# is posted; the offset of a slot that is free.
RECORD = struct.Struct("=qqqqdqq")
_NO_MESSAGE = NONE, 0, 0, 0, 0.0
Record = tuple[int, int, int, int, float, int, int]


class Gone(RuntimeError):
    """A peer has ended."""


class Peer:
    """A neighbour: the messages to it that it has posted no receive for, and those from it that nobody waited for.

    What it can do without for a while is held back; ``holding`` has the peers for which there is any. Of receives that
    is one at most, and this rank never waits for a message with anything held back. What its sender may not send
    without that one comes more than a channel's depth after the message that this rank took up before it posted. In
    every order in which the schedule can run with so few messages in a channel, this rank's action with that message,
    and all that it needs of others, is over by then: so holding back locks nobody up.
    """

    def __init__(
        self,
        peer: LocalPeer,
        limit: float,
        copies: SimpleQueue[Copy | None],
        at_once: int,
        holding: set[Peer],
    ) -> None:
        self.rank, self._limit, self._copies, self._at_once = peer.rank, limit, copies, at_once
        self._holding = holding
        self._freed: list[int] = []  # held back: offsets of the peer's slots that are not needed any more
        self._post = NONE  # held back: the tag of a receive
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
        self._unposted: dict[int, deque[Send]] = defaultdict(deque)
        self._posted: dict[int, int] = defaultdict(int)  # receives that nothing was sent for
        self._arrived: dict[int, deque[Record]] = defaultdict(deque)
        self._read = bytearray(RECORD.size * 256)
        self._partial = 0  # bytes of a record whose rest is still to come

    def send(self, tag: int, tensor: Tensor, size: int, arrival: float) -> Send:
        """Starts sending a contiguous tensor of ``size`` bytes."""
        slot = self.outgoing.take(size)
        if slot is None:
            self._take_in(socket.MSG_DONTWAIT)  # slots that have come back
            slot = self.outgoing.take(size) or self.outgoing.add(size)
        sent = Send(self)
        if self._posted[tag]:
            self._posted[tag] -= 1
            sent.posted = True
        else:
            self._unposted[tag].append(sent)
        if size <= self._at_once:
            record = self._with_held(tag, slot.offset, slot.capacity, size, arrival)
            ctypes.memmove(slot.address, tensor.data_ptr(), size)  # which takes the caches' place
            self._write(record)
        else:
            self.let_go()  # it does not wait for copies
            sent.copied = copied = threading.Event()
            record = RECORD.pack(tag, slot.offset, slot.capacity, size, arrival, NONE, NONE)
            self._copies.put(Copy(self, sent, copied, tensor, slot.address, size, record))
        return sent

    def next_arrived(self, tag: int) -> Record:
        """The next message with the tag, waited for."""
        records = self._arrived[tag]
        while not records:
            self._wait()
        if self._post == tag:  # whose sender was quicker, and may be waiting
            self.let_go()
        return records.popleft()

    def wait_until_posted(self, sent: Send) -> None:
        while not sent.posted:
            self._wait()

    def post(self, tag: int) -> None:
        """A receive is."""
        if self._post != NONE:
            self.let_go()
        self._post = tag
        self._holding.add(self)

    def free(self, offset: int) -> None:
        """The peer's slot is not needed any more."""
        self._freed.append(offset)
        self._holding.add(self)
        if len(self._freed) == MOST_FREED:
            self.let_go()

    def let_go(self) -> None:
        """Of what is held back. A peer that has done its part and ended needs it no more; if it has not done it, that
        comes out as soon as anything of it is waited for."""
        if self in self._holding:
            with suppress(Gone):
                self._write(self._with_held(*_NO_MESSAGE))

    def _with_held(self, tag: int, offset: int, capacity: int, size: int, arrival: float) -> bytes:
        """The record of a message, or of none, with all that was held back."""
        post, self._post = self._post, NONE
        freed = self._freed.pop() if self._freed else NONE
        self._holding.discard(self)
        record = RECORD.pack(tag, offset, capacity, size, arrival, post, freed)
        if not self._freed:
            return record
        others, self._freed = self._freed, []
        return b"".join([*(RECORD.pack(*_NO_MESSAGE, NONE, each) for each in others), record])

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
        self._partial = count % RECORD.size
        whole = count - self._partial
        for record in RECORD.iter_unpack(memoryview(self._read)[:whole]):
            self._file(record)
        self._read[: self._partial] = self._read[whole:count]
        return True

    def _file(self, record: Record) -> None:
        tag, _, _, _, _, posted, freed = record
        if freed != NONE:
            self.outgoing.give_back(freed)
        if posted != NONE:
            if self._unposted[posted]:
                self._unposted[posted].popleft().posted = True
            else:
                self._posted[posted] += 1
        if tag != NONE:
            self._arrived[tag].append(record)

    def _lost(self, why: object) -> Gone:
        return Gone(f"rank {self.rank} is gone: {why}")

    def _timed_out(self) -> RuntimeError:
        return RuntimeError(f"timed out after {self._limit:g} s without a word of rank {self.rank}")


def _close(peer: LocalPeer) -> None:
    peer.connection.close()
    os.close(peer.outgoing)
    os.close(peer.incoming)


class Send:
    """Over when the tensor is copied and the receiver wants it: whoever waits runs no further ahead than it posts."""

    __slots__ = "_peer", "copied", "failure", "posted"

    def __init__(self, peer: Peer) -> None:
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


class Copy(NamedTuple):
    """Work for the thread. It holds the tensor until it is done."""

    peer: Peer
    sent: Send
    copied: threading.Event
    tensor: Tensor
    address: int
    size: int
    record: bytes


def copy_all(copies: SimpleQueue[Copy | None]) -> None:
    """What the thread does, until it is given None."""
    while (copy := copies.get()) is not None:
        ctypes.memmove(copy.address, copy.tensor.data_ptr(), copy.size)
        try:
            copy.peer.write_from_thread(copy.record)
        except RuntimeError as error:
            copy.sent.failure = error
        copy.copied.set()
        del copy  # and the tensor
