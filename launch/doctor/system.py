"""All that the doctor asks of the machine that it is on: one object, so that a test can plant what it cannot cause."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

PROGRAM_S = 20.0  # that a program such as nvidia-smi may take


def run_program(command: Sequence[str]) -> str:
    """What a program prints.

    Raises:
        OSError: there is no such program, it fails, or does not end; with what it said.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S)
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} did not end within {PROGRAM_S:.0f} s") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()[-40:])
        raise OSError(f"{command[0]} ended with status {done.returncode}: {said}")
    return done.stdout


def dial(rank: int, address: tuple[str, int], timeout: float) -> socket.socket:
    """A connection to the rank that listens at (host, port); OSError where there is none within `timeout` seconds."""
    return socket.create_connection(address, timeout=timeout)


@dataclass(frozen=True)
class System:
    """The machine, as this process sees it.

    Attributes:
        environment: variables as the user left them.
        clock: seconds since the epoch.
        statvfs: sizes of the file system of a path.
        run: a program's output; OSError where it cannot be had.
        dial: a connection to another rank.
    """

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    clock: Callable[[], float] = time.time
    statvfs: Callable[[str], os.statvfs_result] = os.statvfs
    run: Callable[[Sequence[str]], str] = run_program
    dial: Callable[[int, tuple[str, int], float], socket.socket] = dial

    @property
    def node(self) -> str:
        """The machine's name: SLURM's for it, which --exclude takes, or its own."""
        return self.environment.get("SLURMD_NODENAME") or socket.gethostname()
