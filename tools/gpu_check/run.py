"""Runs phases one after another, and beside each other those that measure no time. None of them stops the next."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from tools.gpu_check import processes
from tools.gpu_check.phases import FACTS_SECONDS, Phase, missing_for, waves
from tools.gpu_check.results import ENDED, Folder, Outcome, Status
from tools.gpu_check.worker import Process

FACTS = Phase(
    "machine", "What is this machine?", "what can be run", FACTS_SECONDS, "tools.gpu_check.machine:tell"
)
PATIENCE = (
    4  # times its seconds that the look at the machine may take; in miniature, on whatever CPU, every phase
)
LEAST = 0.5  # of its seconds that a phase needs to be begun
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _Running:
    phase: Phase
    process: Process
    began: float
    limit: float


class Check:
    """One call of the program.

    Args:
        miniature: everything on the CPU, as where there is no GPU.
        env: of the phases, beside this process's own.
        say: takes a line of progress.

    Attributes:
        outcomes: by phase, in the order in which they ended.
        interrupted: the signal that ended the call.
        troubles: what could not be written down, in words.
    """

    def __init__(
        self, folder: Folder, miniature: bool, env: Mapping[str, str], say: Callable[[str], None] = print
    ) -> None:
        self.folder, self.miniature, self.say = folder, miniature, say
        self.gpus = 0
        self.env = {**os.environ, **env}
        self.outcomes: dict[str, Outcome] = {}
        self.interrupted: signal.Signals | None = None
        self.troubles: list[str] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, a signal ends the phases that run, and what has been found is still written down."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            self.interrupted = signal.Signals(number)

        previous = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in previous.items():
            if handler != signal.SIG_IGN:  # as under nohup
                signal.signal(number, interrupt)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def machine(self) -> dict[str, Any]:
        """Its facts; the least that is known of it where it does not answer."""
        self._wave([FACTS], PATIENCE * FACTS.seconds, PATIENCE)  # a first import of torch may be slow
        outcome = self.outcomes.pop(FACTS.name)
        told = [row for row in self.folder.found(FACTS.name).rows if row["kind"] == "facts"]
        if told:
            self.miniature = told[-1]["miniature"]  # also where there is no GPU
            self.gpus = len(told[-1]["gpus"])
            return told[-1]
        return {
            "miniature": self.miniature,
            "gpus": [],
            "packages": {},
            "nccl": None,
            "unknown": f"{outcome.status}: {outcome.reason}",
        }

    def phases(self, phases: Sequence[Phase], facts: Mapping[str, Any], ends: float) -> None:
        """Run what the machine can, until the monotonic clock says `ends`."""
        for wave in waves(phases, self.miniature):
            ready = []
            for phase in wave:
                left = ends - time.monotonic()
                reason = missing_for(phase, facts)
                if self.interrupted:
                    words = f"the check was ended by {self.interrupted.name}"
                    self._ended(Outcome(phase.name, "not run", words))
                elif "unknown" in facts:
                    self._ended(
                        Outcome(phase.name, "not run", f"the machine is unknown ({facts['unknown']})")
                    )
                elif reason:
                    self._ended(Outcome(phase.name, "skipped", reason))
                elif left < LEAST * phase.seconds:
                    words = f"{max(left, 0):.0f} s are left of the whole, of {phase.seconds} s for it"
                    self._ended(Outcome(phase.name, "not run", words))
                else:
                    ready.append(phase)
            self._wave(ready, ends - time.monotonic(), PATIENCE if self.miniature else 1)

    def _wave(self, phases: Sequence[Phase], left: float, patience: float) -> None:
        """All at once, each to `patience` times its limit or what is left of the whole."""
        running: list[_Running] = []
        for phase in phases:
            self._begin(phase, min(phase.seconds * patience, left), running)
        while running:
            for one in list(running):
                if self._over(one):
                    running.remove(one)
            time.sleep(0.02)

    def _begin(self, phase: Phase, limit: float, running: list[_Running]) -> None:
        rows = self.folder.rows(phase.name)
        arguments = [phase.target, str(rows), "--seconds", f"{limit:.1f}", "--gpus", str(self.gpus)]
        arguments += ["--miniature"] * self.miniature
        env = self.env | (ON_CPU if self.miniature else {})
        if self.miniature or not phase.compiles:
            env["TORCH_COMPILE_DISABLE"] = "1"
        try:
            self.folder.forget(phase.name)
            process = processes.start(arguments, env, self.folder.log(phase.name))
        except OSError as error:
            self._ended(Outcome(phase.name, "failed", f"could not be started: {error}"))
        else:
            running.append(_Running(phase, process, time.monotonic(), limit))

    def _over(self, one: _Running) -> bool:
        """Whether a phase has ended, or was ended at its limit."""
        status = one.process.poll()
        if status is None and self.interrupted:
            self._end(one, "interrupted", f"by {self.interrupted.name}")
        elif status is None:
            if time.monotonic() - one.began < one.limit:
                return False
            self._end(one, "timed out", f"after {one.limit:.0f} s")
        elif status < 0:
            self._end(one, "crashed", f"by {_signal(-status)}")
        elif status > 0:
            self._end(one, "failed", self._last_words(one.phase.name) or f"ended with status {status}")
        else:
            failed = [r["what"] for r in self.folder.found(one.phase.name).rows if r.get("holds") is False]
            self._end(one, "failed" if failed else "passed", "; ".join(failed)[:300])
        return True

    def _end(self, one: _Running, status: Status, reason: str) -> None:
        seconds = time.monotonic() - one.began
        if not processes.end(one.process.pid):
            reason += "; some of its processes outlive their killing"
        one.process.poll()
        if unreadable := self.folder.found(one.phase.name).unreadable:
            reason = "; ".join(filter(None, [reason, f"{unreadable} unreadable lines among its rows"]))
        self._ended(Outcome(one.phase.name, status, reason, round(seconds, 1)))

    def _ended(self, outcome: Outcome) -> None:
        self.outcomes[outcome.name] = outcome
        try:
            self.folder.keep(outcome)
        except OSError as error:
            self.troubles.append(f"{outcome.name}: how it ended could not be written down: {error}")
        words = f"{outcome.status}: {outcome.reason}" if outcome.reason else outcome.status
        rows = len(self.folder.found(outcome.name).rows)
        self.say(f"{outcome.name:>11}  {outcome.seconds:5.1f} s  {rows:3} rows  {words}")

    def _last_words(self, name: str) -> str:
        """The last line of a traceback: what went wrong."""
        try:
            lines = self.folder.log(name).read_text(errors="replace").split("\n")
        except OSError:
            return ""
        return next((" ".join(line.split())[:300] for line in reversed(lines) if line.strip()), "")


def kept(folder: Folder) -> dict[str, Outcome]:
    """Of the phases that an earlier call has brought to an end, and that --resume leaves alone."""
    return {name: outcome for name, outcome in folder.outcomes().items() if outcome.status in ENDED}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
