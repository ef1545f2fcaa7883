"""One process of a phase: it writes a row for everything that it finds, as soon as it has found it.

    python -m tools.gpu_check.worker module:function ROWS --seconds 30 [--miniature] [--arguments JSON]

A row is a line of JSON, so that whatever ends the process leaves what was found before. Kinds of rows:
figure (value and unit), check (holds or not), skipped (and why), facts (of the machine).
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import fcntl
import importlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tools.gpu_check import processes

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Process(Protocol):
    """As much of subprocess.Popen as is used here."""

    pid: int

    def poll(self) -> int | None: ...


@dataclass
class PhaseContext:
    """What a phase is called with.

    Attributes:
        miniature: on the CPU, with small shapes. Nothing that is measured then is said of a GPU.
        rows: the file that rows go to, shared with the children.
        ends: on the monotonic clock, when the phase is ended.
        gpus: that the machine has, so that a process which only starts others need not load torch to count them.
        arguments: of a child, from the phase that has started it.
    """

    rows: Path
    miniature: bool
    ends: float
    gpus: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cpu" if self.miniature else "cuda"

    @property
    def folder(self) -> Path:
        """For files that a phase leaves."""
        return self.rows.parent

    def left(self) -> float:
        """Seconds until this phase is ended."""
        return self.ends - time.monotonic()

    def figure(self, what: str, value: float | str, unit: str = "") -> None:
        """Something measured."""
        self._write({"kind": "figure", "what": what, "value": _plain(value), "unit": unit})

    def check(self, what: str, holds: bool, detail: str = "") -> None:
        """Something that has to hold."""
        self._write({"kind": "check", "what": what, "holds": bool(holds), "detail": detail})

    def skipped(self, what: str, reason: object) -> None:
        """Something that could not be measured."""
        self._write({"kind": "skipped", "what": what, "reason": " ".join(str(reason).split())[:300]})

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Of the machine."""
        self._write({"kind": "facts", **facts})

    def _write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False) + "\n"
        # One write, appended: children share the file.
        with open(self.rows, "ab", buffering=0) as file:
            file.write(line.encode())

    def children(self, *wanted: Child) -> list[int]:
        """Runs them at once; their exit statuses. A child that fails is a row, and the others go on."""
        own = [(child, self._start(child)) for child in wanted]
        statuses: list[int | None] = [None] * len(own)
        while None in statuses:
            statuses = [process.poll() for _, process in own]
            if self.left() < 1:
                break
            time.sleep(0.02)
        for (child, process), status in zip(own, statuses, strict=True):
            if status is None:
                os.kill(process.pid, signal.SIGKILL)
            if status != 0 and not child.may_fail:
                how = f"ended with status {status}" if status is not None else "was not done in time"
                self.check(child.name, False, f"{how}; see {self._log(child).name}")
        return [-signal.SIGKILL if status is None else status for status in statuses]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Only one child at a time is inside: they start up together, and do not disturb each other's times."""
        with open(self.folder / f"{self.rows.stem}.turn", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _start(self, child: Child) -> Process:
        arguments = [child.target, str(self.rows), "--seconds", f"{max(self.left() - 1, 0):.1f}"]
        arguments += ["--gpus", str(self.gpus)]
        arguments += ["--arguments", json.dumps(child.arguments)] + ["--miniature"] * self.miniature
        return processes.start(arguments, {**os.environ, **child.env}, self._log(child), session=False)

    def _log(self, child: Child) -> Path:
        name = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in child.name)
        return self.folder / f"{self.rows.stem}.{name}.log"


@dataclass(frozen=True)
class Child:
    """A further process of a phase: another environment, another rank, or simply beside it.

    Attributes:
        may_fail: that it does not end well is an answer, which its phase writes down.
    """

    name: str
    target: str
    env: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    may_fail: bool = False


def ranks(
    count: int,
    target: str,
    port: int,
    env: Mapping[str, str] | None = None,
    name: str = "",
    may_fail: bool = False,
    **arguments: Any,
) -> list[Child]:
    """Children that are the ranks of torch.distributed on this machine."""
    place = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Child(
            f"{name or target.split(':')[1]}, rank {rank} of {count}",
            target,
            {
                key: str(value)
                for key, value in {**place, "RANK": rank, "LOCAL_RANK": rank, **(env or {})}.items()
            },
            arguments,
            may_fail,
        )
        for rank in range(count)
    ]


def _plain(value: float | str) -> float | str:
    """JSON has no infinities."""
    if isinstance(value, str) or math.isfinite(value):
        return value
    return str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Calls the target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", metavar="MODULE:FUNCTION")
    parser.add_argument("rows", type=Path, metavar="ROWS", help="the file that lines are added to")
    parser.add_argument("--seconds", type=float, required=True, help="after which this process is ended")
    parser.add_argument("--miniature", action="store_true")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--arguments", type=json.loads, default={})
    asked = parser.parse_args(arguments)
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    # A second before the end the stacks go into the log, whatever this process is stuck in.
    faulthandler.dump_traceback_later(max(asked.seconds - 1, 0.5), exit=False)
    ends = time.monotonic() + asked.seconds
    module, _, function = asked.target.partition(":")
    work = PhaseContext(asked.rows, asked.miniature, ends, asked.gpus, asked.arguments)
    getattr(importlib.import_module(module), function)(work)
    faulthandler.cancel_dump_traceback_later()
    return 0


if __name__ == "__main__":
    sys.exit(main())
