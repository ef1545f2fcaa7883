"""A process that is a machine: what its daemon has started ends with it, also what has lost its parent.

    python tests/launch/machine.py COMMAND...

It ends when the daemon does, when the process that has started it does, and by SIGTERM.
"""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main(command):
    libc = ctypes.CDLL(None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    daemon = subprocess.Popen(command)
    try:
        while os.wait()[0] != daemon.pid:  # an orphan, which is this process's to reap
            pass
    finally:
        power_off(os.getpid())


def power_off(machine):
    """End all that runs there; the machine's own process follows. All are stopped before one is killed."""
    while running := [each for each in psutil.Process(machine).children(True) if alive(each)]:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in running:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        psutil.wait_procs(running, 0.2)


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
