"""Runs a function on several gloo ranks, each a process forked from a clean zygote.

    results = run_ranks(4, workers.train, steps, timeout=30)

A rank that raises, dies or hangs fails the call with what every rank said and, after a hang, the stacks of
all threads of every rank. Nothing is left running afterwards.
"""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.zygote import Ending, Request

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
    ``module:function`` to call) that the zygote imports once, in order; one zygote is kept per list. RANK, WORLD_SIZE,
    LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set, and ``env`` on top; the default gloo group exists unless
    ``process_group`` is False.
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
        endings = _Zygote.of(tuple(preload)).run(request)
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


class _Zygote:
    """The pytest side of one zygote process."""

    _running: dict[tuple[str, ...], _Zygote] = {}  # noqa: RUF012, one per list of preloaded modules

    @classmethod
    def of(cls, preload: tuple[str, ...]) -> _Zygote:
        zygote = cls._running.get(preload)
        if zygote is None or zygote.process.poll() is not None:
            zygote = cls._running[preload] = cls(preload)
        return zygote

    def __init__(self, preload: tuple[str, ...]) -> None:
        here, there = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        fixed = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        # Ranks compute on the CPU. On a machine with GPUs, asking for one would start CUDA in the zygote, and a
        # process that has started it cannot be forked.
        fixed |= {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115, lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", str(there.fileno()), *preload],
            cwd=ROOT,
            env={**os.environ, **fixed, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"},
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        there.close()
        self.connection = Connection(here.detach())
        atexit.register(self.stop)
        self._receive(timeout=120.0)

    def run(self, request: Request) -> list[Ending]:
        self.connection.send(request)
        answer = self._receive(request.timeout + 30.0)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def _receive(self, timeout: float) -> Any:
        try:
            if self.connection.poll(timeout):
                return self.connection.recv()
            what = f"has not answered for {timeout:.0f} s"
        except EOFError:
            what = "has died"
        self.stop()
        self.log.seek(0)
        raise RuntimeError(f"the zygote {what}; it said:\n{self.log.read().decode(errors='replace')}")

    def stop(self) -> None:
        """Ends the process, and through it every rank that it may still have."""
        self.connection.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
