"""Ranks on this machine, started by the command itself where no launcher did.

Without CUDA the ranks are forks: torch and Megatron-Core are imported once, by the parent, which runs no
operation on tensors (a fork of a process that has used torch's thread pool hangs in its first matmul). With
CUDA they are spawned, since a CUDA context does not survive a fork.

The first rank that fails ends the others, so that a broken run never waits for a collective to time out, and
the parent says once what happened. Ranks die with the parent, even with a killed one.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Literal, NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform import standard_streams
from hcmegatron.platform.collective_failure import Ended, PeerFailed
from hcmegatron.platform.exit_status import STOPPED, USER_ERROR
from hcmegatron.platform.ranks import STARTED_HERE, RankInfo, free_port

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
GRACE_S = 10.0  # for the other ranks to end after one has failed
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Worker = Callable[[RankInfo], int]


class Failure(NamedTuple):
    """Why a rank ended. The earliest is the cause; the others lost their peer."""

    time: float  # of the monotonic clock, which the processes of a machine share; of one that went along: inf
    rank: int
    status: int
    text: str  # "": nothing to say beyond the status
    ended: bool = False  # for a reason in words that all ranks have found


class _Rank(NamedTuple):
    """The parent's view of one rank."""

    number: int
    process: BaseProcess
    messages: Connection  # one Failure, if it raised


def launch_ranks(worker: Worker, world_size: int, method: Literal["fork", "spawn"] = "fork") -> int:
    """Run `worker` as world_size ranks on this machine, and return the exit status of them all.

    `worker` returns an exit status. It may raise ConfigError or Ended, which is then raised here, once. Any other
    exception is written to stderr once, with its traceback and rank, and gives status 1. One rank alone runs
    in this process. With `spawn`, `worker` must be picklable.
    """
    port = free_port()
    places = [
        RankInfo(r, world_size, r, world_size, "127.0.0.1", port, STARTED_HERE) for r in range(world_size)
    ]
    if world_size == 1:
        return worker(places[0])
    return _Launch(multiprocessing.get_context(method)).run(worker, places)


class _Launch:
    """The ranks of one launch, from their start to their end."""

    def __init__(self, context: BaseContext) -> None:
        self.context = context
        self.ranks: list[_Rank] = []
        self.interrupted: int | None = None  # the signal that this process was sent
        self.asked_by_hand = False  # one SIGINT has come
        self.stopped = False  # a rank has ended because it was told to, which is no failure
        self.ending = False  # the ranks were told to end, so that they do is no failure of theirs

    def run(self, worker: Worker, places: list[RankInfo]) -> int:
        # Until a child has its own handlers, signals wait; afterwards the parent passes them on.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        handlers = {number: signal.getsignal(number) for number in FORWARDED}
        # What is ignored stays so, here and in the ranks: SIGHUP under nohup.
        previous = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
        try:
            for place in places:
                receiver, sender = self.context.Pipe(duplex=False)
                process = self.context.Process(
                    target=_child,
                    args=(worker, place, sender, os.getpid(), list(previous)),
                    name=f"rank {place.rank}",
                )
                process.start()
                sender.close()
                self.ranks.append(_Rank(place.rank, process, receiver))
            for number in previous:
                signal.signal(number, self._forward)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            return self._status(self._wait())
        finally:
            self._kill()
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)

    def _wait(self) -> list[Failure]:
        """Wait until all ranks have ended, and end the others once one has failed."""
        alive = {rank.process.sentinel: rank for rank in self.ranks}
        failures: list[Failure] = []
        deadline = None
        while alive:
            ready = wait(list(alive), None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not ready:
                self._kill()
                deadline = None
            for sentinel in ready:
                failure = self._ended(alive.pop(sentinel))
                if failure is not None:
                    failures.append(failure)
            if failures and not self.ending:
                self.ending, deadline = True, time.monotonic() + GRACE_S
                for rank in alive.values():
                    rank.process.terminate()
        return failures

    def _ended(self, rank: _Rank) -> Failure | None:
        """What a rank that has ended says, or its exit status."""
        rank.process.join()
        code = rank.process.exitcode
        if rank.messages.poll():
            try:
                return rank.messages.recv()
            except EOFError:  # the pipe closed without a message
                pass
        if code < 0 and not self.ending:  # killed from outside: before any peer could notice
            text = f"rank {rank.number} was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                text += "; where nobody sent it, by the kernel for want of memory"
            if self.interrupted:
                text = ""
            return Failure(0.0, rank.number, 128 - code, text)
        if code == STOPPED:
            self.stopped = True
        elif code > 0:
            return Failure(
                time.monotonic(), rank.number, code, f"rank {rank.number} ended with status {code}"
            )
        return None

    def _status(self, failures: list[Failure]) -> int:
        """The exit status of the whole; says why it is not 0."""
        if not failures:
            return STOPPED if self.stopped else 0
        cause = min(failures)
        if self.interrupted and cause.status > 128:
            standard_streams.tell(f"hcmegatron: ended by {signal.Signals(self.interrupted).name}")
            return 128 + self.interrupted
        if cause.status == USER_ERROR and cause.text:
            raise ConfigError(cause.text)
        if cause.ended:
            raise Ended(cause.text, cause.status)
        standard_streams.tell(f"hcmegatron: {cause.text}")
        return cause.status

    def _forward(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on. The ranks may save before they end; only a second Ctrl-C does not wait.

        Whoever shuts a machine down or takes an allocation back may send several signals, SIGHUP and SIGTERM or one
        twice: each asks for the same.
        """
        if number == signal.SIGINT:
            if self.asked_by_hand:
                self._kill()
                return
            self.asked_by_hand = True
        if number not in (signal.SIGUSR1, signal.SIGUSR2):
            self.interrupted = number
        for rank in self.ranks:
            if rank.process.is_alive():
                os.kill(rank.process.pid, number)

    def _kill(self) -> None:
        """End what is still alive, with what it has started: every rank leads a process group.

        All of them are stopped before one is killed: a rank that sees its peer end has things to say, and stacks to
        write.
        """
        alive = [rank.process for rank in self.ranks if rank.process.is_alive()]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in alive:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:  # it had not come to make its group
                    os.kill(process.pid, number)
        for process in alive:
            process.join()


def _child(
    worker: Worker, place: RankInfo, messages: Connection, parent: int, heard: list[signal.Signals]
) -> None:
    """One rank, from its start to its exit. heard: the signals that are not ignored."""
    os.setpgid(0, 0)  # the terminal's Ctrl-C goes to the parent alone, which passes it on
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in heard:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    try:
        sys.exit(worker(place))
    except KeyboardInterrupt:
        failure = Failure(time.monotonic(), place.rank, 128 + signal.SIGINT, "")
    except ConfigError as error:
        failure = Failure(time.monotonic(), place.rank, USER_ERROR, str(error))
    except Ended as error:
        failure = Failure(time.monotonic(), place.rank, error.status, str(error), ended=True)
    except PeerFailed as error:
        failure = Failure(math.inf, place.rank, 1, f"rank {place.rank}: {error}")
    except Exception:
        text = f"rank {place.rank} of {place.world_size} failed:\n{without_native_frames(traceback.format_exc())}"
        failure = Failure(time.monotonic(), place.rank, 1, text)
    messages.send(failure)
    sys.exit(failure.status)


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the process that started it ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def without_native_frames(text: str) -> str:
    """A traceback without the C++ stack that torch puts between its message and whatever follows."""
    kept, native = [], False
    for line in text.splitlines():
        if line.startswith("Exception raised from "):
            native = True
        elif native and not line.startswith(("frame #", "<omitting python frames>")):
            native = not line.strip()
        if not native:
            kept.append(line)
    return "\n".join(kept) + "\n"
