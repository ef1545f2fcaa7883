"""Ranks on this machine, started by the command itself where no launcher did.

Without CUDA the ranks are forks: torch and Megatron-Core are imported once, by the parent, which runs no
operation on tensors (a fork of a process that has used torch's thread pool hangs in its first matmul). With
CUDA they are spawned, since a CUDA context does not survive a fork.

The first rank that fails ends the others, so that a broken run never waits for a collective to time out, and
the parent says once what happened. Ranks die with the parent, even with a killed one.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Literal, NamedTuple

from hcmegatron.config.errors import ConfigError
from hcmegatron.platform import standard_streams
from hcmegatron.platform.collective_failure import Ended
from hcmegatron.platform.exit_status import HANG, STOPPED, USER_ERROR
from hcmegatron.platform.imports import uncollected
from hcmegatron.platform.process_signals import FORWARDED
from hcmegatron.platform.rank_process import Failure, Worker, run_rank
from hcmegatron.platform.ranks import STARTED_HERE, RankInfo, free_port

GRACE_S = 10.0  # for the other ranks to end after one has failed


class Outcome(NamedTuple):
    """How a launch ended.

    Attributes:
        cause: the failure that ended it; None where nothing failed.
        stopped: a rank has ended early because it was told to, which is no failure.
        asked: that, or a signal has told the command to end.
        interrupted: the signal that ended it, or 0.
        seen: of the monotonic clock: when the first rank was seen to have failed, or the last one to have ended.
    """

    cause: Failure | None
    stopped: bool
    asked: bool
    interrupted: int
    seen: float

    @property
    def status(self) -> int:
        """The exit status of the whole."""
        if self.cause is None:
            return STOPPED if self.stopped else 0
        if self.interrupted and self.cause.status > 128:
            return 128 + self.interrupted
        return self.cause.status

    def say(self) -> int:
        """The exit status, after saying why it is not 0; ConfigError or Ended where a rank has raised that."""
        cause = self.cause
        if cause is None:
            return self.status
        if self.interrupted and cause.status > 128:
            standard_streams.tell(f"hcmegatron: ended by {signal.Signals(self.interrupted).name}")
            return self.status
        if cause.status == USER_ERROR and cause.text:
            raise ConfigError(cause.text)
        if cause.ended:
            raise Ended(cause.text, cause.status)
        standard_streams.tell(f"hcmegatron: {cause.text}")
        return self.status


class _Rank(NamedTuple):
    """The parent's view of one rank."""

    number: int
    process: BaseProcess
    # Its end, to wait for. A process's own sentinel is a pipe, which stays open in whatever the rank has started.
    descriptor: int
    messages: Connection  # one Failure, if it raised


def launch_ranks(
    worker: Worker, world_size: int, method: Literal["fork", "spawn"] = "fork", patience: float = 0.0
) -> int:
    """Run `worker` as world_size ranks on this machine, and return the exit status of them all.

    `worker` returns an exit status. It may raise ConfigError or Ended, which is then raised here, once. Any other
    exception is written to stderr once, with its traceback and rank, and gives status 1. One rank alone runs
    in this process. With `spawn`, `worker` must be picklable.

    Args:
        patience: seconds for which the others go on after one has failed, until rank 0 has said what it makes of it,
            which then counts.
    """
    if world_size == 1:
        return worker(RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), STARTED_HERE))
    return launch_apart(worker, world_size, method, patience).say()


def launch_apart(
    worker: Worker, world_size: int, method: Literal["fork", "spawn"] = "fork", patience: float = 0.0
) -> Outcome:
    """As `launch_ranks`, each rank in a process of its own, and how they ended. Nothing is said."""
    port = free_port()
    places = [
        RankInfo(rank, world_size, rank, world_size, "127.0.0.1", port, STARTED_HERE, apart=True)
        for rank in range(world_size)
    ]
    return _Launch(multiprocessing.get_context(method), patience).run(worker, places)


def start_method(world_size: int, gpus: int, module: str) -> Literal["fork", "spawn"]:
    """How ranks begin whose work is in `module`, on this machine's GPUs or else, with a warning, on its CPU.

    Fewer GPUs than ranks are hidden from them. For forks the module is imported here, once for all.

    Args:
        gpus: that this process sees.
    """
    if gpus == 0:
        with uncollected():
            importlib.import_module(module)
        return "fork"
    if gpus < world_size:
        standard_streams.warn(
            [f"the layout asks for {world_size} ranks and there are {gpus} GPUs: on the CPU instead"]
        )
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return "spawn"


class _Launch:
    """The ranks of one launch, from their start to their end."""

    def __init__(self, context: BaseContext, patience: float) -> None:
        self.context, self.patience = context, patience
        self.ranks: list[_Rank] = []
        self.interrupted = 0  # the signal that this process was sent
        self.asked_by_hand = False  # one SIGINT has come
        self.asked = False  # so was this process, or by SIGUSR1: to end
        self.stopped = False  # a rank has ended because it was told to
        self.seen = 0.0  # when the first failure was
        self.ending = False  # the ranks were told to end, so that they do is no failure of theirs

    def run(self, worker: Worker, places: list[RankInfo]) -> Outcome:
        # Until a child has its own handlers, signals wait; afterwards the parent passes them on.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        handlers = {number: signal.getsignal(number) for number in FORWARDED}
        # What is ignored stays so, here and in the ranks: SIGHUP under nohup.
        previous = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
        try:
            for place in places:
                receiver, sender = self.context.Pipe(duplex=False)
                process = self.context.Process(
                    target=run_rank,
                    args=(worker, place, sender, os.getpid(), list(previous)),
                    name=f"rank {place.rank}",
                )
                process.start()
                sender.close()
                self.ranks.append(_Rank(place.rank, process, os.pidfd_open(process.pid), receiver))
            for number in previous:
                signal.signal(number, self._forward)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            failures = self._wait()
            # Who was given time to judge has the last word.
            cause = min(failures, key=lambda one: (bool(self.patience and one.rank), one), default=None)
            asked = self.asked or self.stopped
            return Outcome(cause, self.stopped, asked, self.interrupted, self.seen or time.monotonic())
        finally:
            self._kill()
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _wait(self) -> list[Failure]:
        """Wait until all ranks have ended, and end the others once one has failed."""
        alive = {rank.descriptor: rank for rank in self.ranks}
        failures: list[Failure] = []
        deadline = None
        while alive:
            ready = wait(list(alive), None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not ready and self.ending:
                self._kill()
                deadline = None
            for descriptor in ready:
                os.close(descriptor)
                failure = self._ended(alive.pop(descriptor))
                if failure is not None:
                    failures.append(failure)
            if failures and not self.seen:
                self.seen = time.monotonic()
                deadline = self.seen + self.patience
            judged = all(rank.number for rank in alive.values())  # rank 0 has said what it makes of it
            if failures and not self.ending and (judged or time.monotonic() >= deadline):
                self.ending = True
                deadline = time.monotonic() + GRACE_S
                for rank in alive.values():
                    rank.process.terminate()
        return failures

    def _ended(self, rank: _Rank) -> Failure | None:
        """What a rank that has ended says, or its exit status."""
        with suppress(ProcessLookupError):
            # What it had started. Until it is waited for, its group keeps its number.
            os.killpg(rank.process.pid, signal.SIGKILL)
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
        elif code == HANG:
            text = f"rank {rank.number} hung, or waited for one that did: see hang/ in the run directory"
            return Failure(time.monotonic(), rank.number, code, text)
        elif code > 0:
            return Failure(
                time.monotonic(), rank.number, code, f"rank {rank.number} ended with status {code}"
            )
        return None

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
        self.asked |= number != signal.SIGUSR2
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
