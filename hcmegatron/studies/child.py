"""One `hcmegatron train` as a child of this process, which has imported what it needs: it starts in tenths of a second.

It leads a session of its own, so that a terminal's Ctrl-C reaches the parent alone, and ends with its parent, even with
one that is killed; so do ranks that it starts (platform/rank_process.py).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from hcmegatron.platform import cuda_environment
from hcmegatron.platform.process_signals import FORWARDED, end_with_parent
from hcmegatron.studies.slots import Slot


def preload(gpus: bool) -> None:
    """Import once, for all children, what they need. Not on GPUs, where an import might start CUDA."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    cuda_environment.prepare(os.environ)
    if not gpus:
        importlib.import_module("hcmegatron.training.run")


class Child:
    """`hcmegatron ARGUMENTS`, started.

    Args:
        log: takes what it says.
        slot: the cores and GPUs that it may use.
        after: called in the child before anything else.
    """

    def __init__(self, arguments: Sequence[str], log: Path, slot: Slot, after: Callable[[], None]) -> None:
        # Until the child has its own handlers, signals wait.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            parent = os.getpid()
            self.pid = os.fork()
            if not self.pid:
                _run(arguments, log, slot, after, parent)
            self.descriptor = os.pidfd_open(self.pid)  # readable when it has ended
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def wait(self) -> int:
        """Its exit status once it has ended: minus a signal's number where that has killed it. What it had started is
        ended too."""
        with suppress(ProcessLookupError):  # until it is waited for, its group keeps its number
            os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(status)

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal. SIGKILL goes to all that it has started."""
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                with suppress(ProcessLookupError):  # it has just been forked, and leads no group yet
                    os.killpg(self.pid, number)
            os.kill(self.pid, number)


def _run(arguments: Sequence[str], log: Path, slot: Slot, after: Callable[[], None], parent: int) -> None:
    """In the child; does not return."""
    status = 1
    try:
        os.setsid()
        end_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        after()
        os.sched_setaffinity(0, slot.cores)
        if slot.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        with open(os.devnull, "rb") as nothing, log.open("ab") as out:
            for stream, file in ((0, nothing), (1, out), (2, out)):
                os.dup2(file.fileno(), stream)
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, usual)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        status = importlib.import_module("hcmegatron.cli").main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
