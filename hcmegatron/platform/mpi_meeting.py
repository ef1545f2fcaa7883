"""Over MPI: where the ranks of an mpirun can reach rank 0. A program of its own, started by platform/mpi.py.

Prints one line of JSON: {"size", "library"}, and where MPI sees as many ranks as the launcher has started, with
{"address", "port", "interface"}: what every rank can reach rank 0 at, and this rank's own interface that leads there.
Host names play no part: they need not resolve, and often resolve to a loopback address. Rank 0 listens on all its
interfaces, one rank of every other machine tries all of its addresses, and what answers has to know a secret, because
an address such as that of Docker's bridge is another machine's too.
"""

from __future__ import annotations

import argparse
import ctypes
import ipaddress
import json
import os
import random
import secrets
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import mpi4py
import psutil

KNOCK_S = 3.0  # for an address to answer; all of them are asked at the same time
BRIDGES = ("br-", "cni", "docker", "lxcbr", "lxdbr", "podman", "virbr")  # interfaces inside one machine
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Meet the others, and print what was found."""
    parser = argparse.ArgumentParser()
    for name in ("--size", "--local-rank", "--first-port", "--last-port", "--finalize"):
        parser.add_argument(name, type=int, required=True)
    asked = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _keep_off_bridges()
    mpi4py.rc(initialize=False, finalize=False)
    from mpi4py import MPI

    MPI.Init_thread(MPI.THREAD_FUNNELED)
    world = MPI.COMM_WORLD
    found = {"size": world.size, "library": _in_brief(MPI.Get_library_version())}
    if world.size == asked.size:
        found |= _meet(world, asked)
        world.Barrier()
    print(json.dumps(found), flush=True)
    if asked.finalize:
        MPI.Finalize()
    os._exit(0)


def _in_brief(version: str) -> str:
    """ "Open MPI v5.0.11" of that and all that is said of its build; "MPICH Version: 5.0.2"."""
    return " ".join(version.strip("\0 \n").splitlines()[0].partition(",")[0].split())


def _meet(world: mpi4py.MPI.Intracomm, asked: argparse.Namespace) -> dict[str, str | int]:
    secret = world.bcast(secrets.token_bytes(16) if world.rank == 0 else None)
    listener = _listen(asked.first_port, asked.last_port) if world.rank == 0 else None
    port = world.bcast(listener.getsockname()[1] if listener else None)
    if listener:
        threading.Thread(target=_answer, args=(listener, secret), daemon=True).start()
    addresses: list[str] = world.bcast(list(_interfaces()) if world.rank == 0 else None)
    reached = None
    if asked.local_rank == 0 and world.rank > 0:
        with ThreadPoolExecutor(max(1, len(addresses))) as pool:
            answers = pool.map(lambda address: _knock(address, port, secret), addresses)
            reached = [address for address, true in zip(addresses, answers, strict=True) if true]
    all_reached = world.allgather(reached)
    if listener:
        listener.close()
    common = [address for address in addresses if all(r is None or address in r for r in all_reached)]
    if not common:
        return {"port": port, "offered": ", ".join(addresses)}
    return {"address": common[0], "port": port, "interface": _interface_to(common[0])}


def _interfaces() -> dict[str, str]:
    """This machine's addresses that others may reach, with the names of their interfaces: IPv4 first, and first of all
    what its own name stands for."""
    found = {}
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                address = ipaddress.ip_address(entry.address.partition("%")[0])
                if not (address.is_loopback or address.is_link_local):
                    found[str(address)] = name
    named: set[str] = set()
    with suppress(OSError):
        named = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    return dict(sorted(found.items(), key=lambda item: (item[0] not in named, ":" in item[0])))


def _listen(first: int, last: int) -> socket.socket:
    """A socket on all interfaces, at a free port from first to last."""
    for port in random.sample(range(first, last + 1), last + 1 - first):
        for family in (socket.AF_INET6, socket.AF_INET):  # IPv6 may be switched off
            with suppress(OSError):
                both = family == socket.AF_INET6
                return socket.create_server(("", port), family=family, backlog=4096, dualstack_ipv6=both)
    raise OSError(f"no free port from {first} to {last}")


def _answer(listener: socket.socket, secret: bytes) -> None:
    with suppress(OSError):  # until it is closed
        while True:
            caller, _ = listener.accept()
            threading.Thread(target=_greet, args=(caller, secret), daemon=True).start()


def _greet(caller: socket.socket, secret: bytes) -> None:
    with suppress(OSError), caller:
        caller.settimeout(KNOCK_S)
        caller.sendall(secret)
        caller.recv(1)  # the caller closes first, so that this port is free at once


def _knock(address: str, port: int, secret: bytes) -> bool:
    """Whether it is rank 0 that answers there."""
    with suppress(OSError), socket.create_connection((address, port), timeout=KNOCK_S) as line:
        return line.recv(len(secret), socket.MSG_WAITALL) == secret
    return False


def _interface_to(address: str) -> str:
    """The name of this machine's interface on the way to an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as line:
        line.connect((address, 9))  # of UDP: asks for the way, and sends nothing
        return _interfaces().get(line.getsockname()[0], "")


def _keep_off_bridges() -> None:
    """Open MPI takes two machines' bridges of the same address for one network, and ends with an error."""
    if not any(name.startswith("OMPI_MCA_btl_tcp_if_") for name in os.environ):
        names = [name for name in psutil.net_if_addrs() if name.startswith(("lo", *BRIDGES))]
        os.environ |= {"OMPI_MCA_btl_tcp_if_exclude": ",".join(names)}


if __name__ == "__main__":
    main()
