"""Whom a rank can reach by a plain socket, and how far their clocks are apart: before torch.distributed is formed.

Gloo and NCCL connect every rank to every other as well, and where a port is blocked they wait for minutes and then name
nobody. Here each rank listens on a port of the system's choice and answers whoever asks with its clock.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import psutil

from hcmegatron.platform.ranks import RankInfo
from launch.doctor.environment import INTERFACES
from launch.doctor.system import System

DIAL_S = 5.0
AT_ONCE = 64  # connections that a rank tries at the same time
TRIPS = 8  # to rank 0's clock; the shortest counts
_ASKED, _ANSWER = b"?", struct.Struct("!d")


class Offset(NamedTuple):
    """Another rank's clock minus this one's, and by how much that may be wrong. Seconds."""

    seconds: float
    uncertainty: float


class Listener:
    """Answers every byte that comes with this rank's clock, until it is closed. A thread for every connection."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        if socket.has_dualstack_ipv6():
            self._socket = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        else:
            self._socket = socket.create_server(("", 0), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, name="doctor's listener", daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(4 * DIAL_S)
        with connection:
            try:
                while connection.recv(1):
                    connection.sendall(_ANSWER.pack(self._clock()))
            except OSError:  # whoever asked has gone, which is theirs to tell
                return


def own_address(ranks: RankInfo, system: System) -> str:
    """Where others reach this rank: the interface that Gloo or NCCL is told to use, or the way to rank 0."""
    for variable in INTERFACES:
        for address in psutil.net_if_addrs().get(system.environment.get(variable, "").removeprefix("="), []):
            if address.family == socket.AF_INET:
                return address.address
    if ranks.rank == 0:
        return ranks.master_addr  # by the name that everybody has for it
    family, *_, target = socket.getaddrinfo(ranks.master_addr, ranks.master_port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing: the system chooses where it would send from
        return probe.getsockname()[0]


def reach(addresses: Mapping[int, tuple[str, int]], system: System) -> dict[int, str]:
    """By rank, why it cannot be reached; "" where it answers.

    Takes at most DIAL_S for every AT_ONCE ranks.
    """

    def one(rank: int) -> str:
        try:
            _trips(rank, addresses[rank], system, 1)
        except OSError as error:
            return error.strerror or str(error) or type(error).__name__
        return ""

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(addresses, pool.map(one, addresses), strict=True))


def clock_offset(rank: int, address: tuple[str, int], system: System) -> Offset | None:
    """Of a rank's clock, as NTP finds it: the answer was written halfway of the trip, give or take half of it."""
    try:
        trips = _trips(rank, address, system, TRIPS)
    except OSError:
        return None  # that it cannot be reached is said elsewhere
    return min(trips, key=lambda offset: offset.uncertainty)


def _trips(rank: int, address: tuple[str, int], system: System, count: int) -> list[Offset]:
    found = []
    with system.dial(rank, address, DIAL_S) as connection:
        connection.settimeout(DIAL_S)
        for _ in range(count):
            # the way there and back by a clock that nobody sets, the moment by the one that is compared
            begin, here = time.perf_counter(), system.clock()
            connection.sendall(_ASKED)
            answer = b""
            while len(answer) < _ANSWER.size:
                if not (part := connection.recv(_ANSWER.size - len(answer))):
                    raise OSError("closed the connection")
                answer += part
            half = (time.perf_counter() - begin) / 2
            found.append(Offset(_ANSWER.unpack(answer)[0] - here - half, half))
    return found
