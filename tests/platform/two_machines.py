"""Two machines on this one: namespaces with a name and network interfaces of their own, and an ssh between them.

Their names n0 and n1 resolve to nothing. Both have Docker's bridge with the same address, as real ones have.
"""

import os
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ADDRESSES = ("10.77.0.1", "10.77.0.2")
LINKS = ("eth7", "eth8")
_SSH = """#!/bin/sh
[ "$1" = -x ] && shift
host=$1; shift
case $host in
n0) exec nsenter -t {0} -n -u sh -c "$*" ;;
n1) exec nsenter -t {1} -n -u sh -c "$*" ;;
esac
exit 1
"""
_START = """hostname {name} && ip link set lo up && ip link add docker0 type bridge &&
ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up && echo up && exec sleep 300"""


class Machines(NamedTuple):
    """The processes that hold them, and the program that goes from one to another."""

    pids: tuple[int, int]
    ssh: Path

    def on(self, number, *command):
        """The words of a command that runs on one of them."""
        return ["nsenter", "-t", str(self.pids[number]), "-n", "-u", *map(str, command)]


def missing():
    """Why there can be no machines here, or ""."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"no {program}: apt-get install util-linux iproute2"
    tried = subprocess.run(
        ["unshare", "-n", "-u", "ip", "link", "add", "b0", "type", "bridge"], capture_output=True
    )
    return f"no network namespaces: {tried.stderr.decode().strip()}" if tried.returncode else ""


@contextmanager
def two_machines(folder):
    """Both, until the end of the block."""
    with ExitStack() as stack:
        pids = []
        for name in ("n0", "n1"):
            holder = subprocess.Popen(
                ["unshare", "-n", "-u", "sh", "-c", _START.format(name=name)], stdout=subprocess.PIPE
            )
            stack.callback(holder.wait)
            stack.callback(holder.kill)
            stack.callback(holder.stdout.close)
            assert holder.stdout.readline() == b"up\n"
            pids.append(holder.pid)
        ssh = Path(folder) / "ssh"
        ssh.write_text(_SSH.format(*pids))
        os.chmod(ssh, 0o755)
        machines = Machines(tuple(pids), ssh)
        ends = [word for link, pid in zip(LINKS, pids, strict=True) for word in (link, "netns", str(pid))]
        subprocess.run(
            ["ip", "link", "add", *ends[:3], "type", "veth", "peer", "name", *ends[3:]], check=True
        )
        for number, (link, address) in enumerate(zip(LINKS, ADDRESSES, strict=True)):
            subprocess.run(machines.on(number, "ip", "addr", "add", f"{address}/24", "dev", link), check=True)
            subprocess.run(machines.on(number, "ip", "link", "set", link, "up"), check=True)
        yield machines
