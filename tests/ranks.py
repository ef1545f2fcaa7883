"""Runs a function on several gloo ranks, each a process forked from a clean fork server.

    results = run_ranks(4, workers.train, steps, timeout=30)

A rank that raises, dies or hangs fails the call with what every rank said and, after a hang, the stacks of
all threads of every rank. Nothing is left running afterwards.
"""

from __future__ import annotations

import atexit
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, BinaryIO

from tests.fork_server import Branch, Ending, Request

ROOT = Path(__file__).resolve().parent.parent
PRELOAD = ("torch.distributed",)


class RanksFailed(AssertionError):
    """At least one rank raised, ended with a non-zero code or had to be killed."""


@dataclass(frozen=True)
class Outcome:
    """How one rank ended. ``error`` is a traceback; ``overtime`` says that it was killed by this harness."""

    rank: int
    exit_code: int
    overtime: bool
    result: Any
    error: str | None
    output: str
    stacks: str

    def __str__(self) -> str:
        how = "killed: out of time" if self.overtime else f"exit code {self.exit_code}"
        lines = [f"--- rank {self.rank}: {how}"]
        if self.error:
            lines.append(self.error.rstrip())
        if self.output.strip():
            lines += ["output (the end of it):", *self.output.rstrip().splitlines()[-40:]]
        if self.stacks:
            lines += ["stacks:", self.stacks.rstrip()]
        return "\n".join(lines)


Target = Callable[..., Any] | str


def run_ranks(world_size: int, target: Target, *args: Any, **options: Any) -> list[Any]:
    """What ``target(*args)`` returned on every rank, in order of rank; RanksFailed if any rank failed.

    ``options`` are those of ``observe_ranks``.
    """
    outcomes = observe_ranks(world_size, target, *args, **options)
    if any(outcome.exit_code != 0 for outcome in outcomes):
        raise RanksFailed(f"{_words(target)} on {world_size} ranks\n" + "\n".join(map(str, outcomes)))
    return [outcome.result for outcome in outcomes]


def observe_ranks(
    world_size: int,
    target: Target,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = 60.0,
    grace: float = 3.0,
    preload: Sequence[str] = PRELOAD,
    process_group: bool = True,
    env: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """Runs ``target`` on every rank and says how each ended, whatever happened.

    ``target`` is a function of a module's top level; or, where importing its module would change the process of the
    tests (a stub, an emulation), its name, ``package.module:function``. ``args``, ``kwargs`` and what the target
    returns travel by pickle. After ``timeout`` seconds, or ``grace`` seconds after the first rank ended with a non-zero
    code, the remaining ranks write their stacks and are killed. ``preload`` lists modules (``module``, or
    ``module:function`` to call) that the fork server imports once, in order; one fork server is kept per list, forked
    from a first one that imported torch. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set, and ``env``
    on top; the default gloo group exists unless ``process_group`` is False.
    """
    directory = Path(tempfile.mkdtemp(prefix="ranks-"))
    try:
        request = Request(
            target=_words(target),
            world_size=world_size,
            call=pickle.dumps((args, dict(kwargs or {}))),
            directory=directory,
            timeout=timeout,
            grace=grace,
            process_group=process_group,
            sys_path=list(sys.path),
            env=dict(env or {}),
        )
        endings = _Zygotes.of(tuple(preload)).run(request)
        return [_outcome(rank, ending, directory) for rank, ending in enumerate(endings)]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _words(target: Target) -> str:
    """A target as the ranks import it."""
    return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"


def _outcome(rank: int, ending: Ending, directory: Path) -> Outcome:
    result_file = directory / f"result.{rank}"
    result, error = pickle.loads(result_file.read_bytes()) if result_file.exists() else (None, None)
    output = (directory / f"output.{rank}").read_text(errors="replace")
    stacks = (directory / f"stacks.{rank}").read_text(errors="replace")
    return Outcome(rank, ending.exit_code, ending.overtime, result, error, output, stacks)


# Ranks compute on the CPU. On a machine with GPUs, asking for one would start CUDA in the fork server, and a process
# that has started it cannot be forked.
_FIXED = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
_FIXED |= {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "GLOO_SOCKET_IFNAME": "lo"}


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **_FIXED, "PYTHONPATH": path}


class _ForkServer:
    """The pytest side of one fork server process: the first, or one that the first forked."""

    def __init__(self, connection: Connection, pid: int, log: BinaryIO) -> None:
        self.connection, self.pid, self.log = connection, pid, log
        self.log_start = os.fstat(log.fileno()).st_size
        self.receive(timeout=120.0)

    def run(self, request: Request) -> list[Ending]:
        self.connection.send(request)
        answer = self.receive(request.timeout + 30.0)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def receive(self, timeout: float) -> Any:
        try:
            if self.connection.poll(timeout):
                return self.connection.recv()
            what = f"has not answered for {timeout:.0f} s"
        except EOFError:
            what = "has died"
        self.stop()
        said = os.pread(self.log.fileno(), 1 << 20, self.log_start).decode(errors="replace")
        raise RuntimeError(f"the fork server {what}; it said:\n{said}")

    def stop(self) -> None:
        """Ends the process, and through it every rank that it may still have."""
        self.connection.close()
        with suppress(ProcessLookupError):  # it has ended, and its parent has collected it
            ended = os.pidfd_open(self.pid)
            if not select.select([ended], [], [], 20)[0]:
                os.kill(self.pid, signal.SIGKILL)
            os.close(ended)


class _Zygotes:
    """The first fork server process, and by list of modules the one forked from it."""

    _running: _Zygotes | None = None

    @classmethod
    def of(cls, preload: tuple[str, ...]) -> _ForkServer:
        if cls._running is None or cls._running.process.poll() is not None:
            cls._running = cls()
        branches = cls._running.branches
        if preload not in branches or branches[preload].connection.closed:
            branches[preload] = cls._running._branch(preload)
        return branches[preload]

    def __init__(self) -> None:
        self.branches: dict[tuple[str, ...], _ForkServer] = {}
        log = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the process
        here, there = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(there.fileno())],
            cwd=ROOT,
            env=_environment(),
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        there.close()
        self.first = _ForkServer(Connection(here.detach()), self.process.pid, log)
        atexit.register(self.stop)

    def _branch(self, preload: tuple[str, ...]) -> _ForkServer:
        here, there = socket.socketpair()
        self.first.connection.send(Branch(preload, _environment()))
        send_handle(self.first.connection, there.fileno(), self.process.pid)
        there.close()
        pid = self.first.receive(timeout=120.0)
        return _ForkServer(Connection(here.detach()), pid, self.first.log)

    def stop(self) -> None:
        for fork_server in (*self.branches.values(), self.first):
            fork_server.stop()
        self.process.wait()
