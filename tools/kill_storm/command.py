"""The command, as a fork of this process, which has imported everything: a start takes tenths of a second."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path

from hcmegatron import cli
from hcmegatron.platform.process_signals import end_with_parent


class Command:
    """`hcmegatron ...`, started; by its setsid(2) whatever it leaves behind is found."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        self.status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _run(arguments, output)

    def ended(self) -> bool:
        """Whether it has; its status is known then, minus the signal that killed it."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end."""
        return until(self.ended, seconds)

    def ranks(self) -> list[int]:
        """The processes that it has started, oldest first."""
        return sorted(pid for pid, parent in _below(self.pid) if parent == self.pid)

    def left(self) -> list[int]:
        """Whatever of it is alive, itself included."""
        return sorted(pid for pid, _ in _below(self.pid))

    def clear(self) -> None:
        """End all of it."""
        for pid in self.left():
            kill(pid, signal.SIGKILL)
        self.ends_within(10)


def until(true: object, seconds: float, pause: float = 0.01) -> bool:
    """Whether a condition comes to hold within so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def kill(pid: int, number: int) -> bool:
    """Send a signal; whether there was anybody to get it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _run(arguments: list[str], output: Path) -> None:
    """In the fork; does not return."""
    status = 1
    try:
        os.setsid()
        end_with_parent(signal.SIGKILL)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = cli.main(arguments)
    except KeyboardInterrupt:  # before the command, which is at home with it, has begun
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _below(leader: int) -> list[tuple[int, int]]:
    """(process, its parent) of all that lives of what a process has started since its setsid(2), and of itself."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            state, parent, _, first = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(first) == leader and state not in "ZX":
            found.append((int(entry), int(parent)))
    return found
