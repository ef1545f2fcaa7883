"""Connections between the ranks of one machine: a Unix socket to each neighbour, and the memory that it shares.

Nothing of it has a name in a file system: the sockets are in Linux's abstract name space and the memory is anonymous
(memfd), handed over through the socket. So nothing is left behind by a rank that is killed, and the size of /dev/shm
does not matter.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

MEETING_S = 30.0  # for all ranks to connect, which are there by then
HELLO_S = 5.0  # for one that has connected to say who it is
_STRANGERS = 8  # may wait at the door beside the neighbours
_HELLO = struct.Struct("=q16s")  # the rank that connects, and the token of the one that it connects to


class Unreachable(RuntimeError):
    """The ranks cannot share memory, for a reason in words that all of them have found."""


class LocalPeer(NamedTuple):
    """A connected neighbour.

    Attributes:
        outgoing: descriptor of this rank's memory, which the peer reads; incoming: of the peer's.
    """

    rank: int
    connection: socket.socket
    outgoing: int
    incoming: int


class _Card(NamedTuple):
    """What a rank tells the others, so that they find it."""

    machine: str
    address: bytes
    token: bytes
    trouble: str


def connect(group: dist.ProcessGroup, neighbours: Iterable[int]) -> dict[int, LocalPeer]:
    """Connects this rank of `group` with its `neighbours` (ranks of the group). Collective over the group.

    Raises:
        Unreachable: on all ranks, if they are not all on one machine, or one of them could not.
    """
    rank, wanted = group.rank(), sorted(set(neighbours))
    with ExitStack() as opened:
        listener, card = _listen(opened, len(wanted))
        cards: list[_Card] = [card] * group.size()
        dist.all_gather_object(cards, card, group=group)
        _refuse([one.trouble for one in cards])
        if len({one.machine for one in cards}) > 1:
            raise Unreachable("the ranks of a pipeline are on several machines")
        peers: dict[int, LocalPeer] = {}
        trouble = ""
        try:
            for peer in wanted:
                if peer > rank:
                    peers[peer] = _call(opened, rank, peer, cards[peer])
            assert listener is not None  # or its card has told of the trouble
            for _ in range(sum(peer < rank for peer in wanted)):
                found = _answer(opened, listener, card.token)
                peers[found.rank] = found
        except OSError as error:
            opened.close()  # so that its neighbours see the end, and do not wait for it
            trouble = f"rank {rank} could not connect with its neighbours: {error}"
        troubles = [trouble] * group.size()
        dist.all_gather_object(troubles, trouble, group=group)
        _refuse(troubles)
        opened.pop_all()
    if listener is not None:
        listener.close()
    return peers


def _refuse(troubles: list[str]) -> None:
    if found := dict.fromkeys(filter(None, troubles)):
        raise Unreachable("; ".join(found))


def _listen(opened: ExitStack, backlog: int) -> tuple[socket.socket | None, _Card]:
    """A socket under a name that the kernel chooses, and how to reach it."""
    try:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.settimeout(MEETING_S)
        listener.bind("")
        listener.listen(backlog + _STRANGERS)
        os.close(os.memfd_create("hcmegatron"))
        # abstract names belong to a network name space, of which one machine can have several
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink(
            "/proc/self/ns/net"
        )
        return listener, _Card(machine, listener.getsockname(), secrets.token_bytes(16), "")
    except (OSError, AttributeError) as error:  # AttributeError: a system without memfd
        return None, _Card("", b"", b"", f"shared memory cannot be had: {error}")


def _call(opened: ExitStack, rank: int, peer: int, card: _Card) -> LocalPeer:
    connection = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    connection.settimeout(MEETING_S)
    connection.connect(card.address)
    outgoing = _memory(opened)
    socket.send_fds(connection, [_HELLO.pack(rank, card.token)], [outgoing])
    _, incoming = _receive(opened, connection)
    return LocalPeer(peer, connection, outgoing, incoming)


def _answer(opened: ExitStack, listener: socket.socket, token: bytes) -> LocalPeer:
    """The next caller that knows the token. Any process of the machine can find the name: one that shows another token,
    leaves or says nothing is shown out."""
    deadline = time.monotonic() + MEETING_S
    while (left := deadline - time.monotonic()) > 0:
        listener.settimeout(left)
        with ExitStack() as own:
            connection = own.enter_context(listener.accept()[0])
            connection.settimeout(min(HELLO_S, left))
            try:
                hello, incoming = _receive(own, connection)
            except OSError:
                continue
            rank, shown = _HELLO.unpack(hello)
            if secrets.compare_digest(shown, token):
                outgoing = _memory(own)
                socket.send_fds(connection, [hello], [outgoing])
                opened.enter_context(own.pop_all())
                return LocalPeer(rank, connection, outgoing, incoming)
    raise TimeoutError("timed out")


def _receive(opened: ExitStack, connection: socket.socket) -> tuple[bytes, int]:
    hello, descriptors, _, _ = socket.recv_fds(connection, _HELLO.size, 1)
    for descriptor in descriptors:
        opened.callback(os.close, descriptor)
        os.set_inheritable(descriptor, False)
    if len(hello) != _HELLO.size or len(descriptors) != 1:
        raise ConnectionError("a peer has closed its end")
    return hello, descriptors[0]


def _memory(opened: ExitStack) -> int:
    descriptor = os.memfd_create("hcmegatron")
    opened.callback(os.close, descriptor)
    return descriptor
