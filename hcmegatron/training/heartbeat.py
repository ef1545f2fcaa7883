"""What a run that was started again leaves behind: signs of life for who restarts it, and how long coming back took."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hcmegatron.platform import restarts
from hcmegatron.training.observer import Observer, Step

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun


class Heartbeat(Observer):
    """On rank 0: the steps done and when, and a line of restarts.jsonl after the first step of a restart.

    Args:
        number: of the restart; 0: the first start.
        beat: what `restarts.supervise` reads; None where another launcher starts the ranks again.
    """

    def __init__(self, run: TrainingRun, number: int, beat: restarts.Beat | None = None) -> None:
        self.run, self.beat, self.first = run, beat, run.ranks.rank == 0
        self.waiting = self.first and number > 0  # for the first step of a restart
        self.number, self.built = number, time.monotonic()
        self.from_step = run.position.step
        self.alive = _age()
        self._sign(run.position.step)

    def on_step(self, step: Step) -> None:
        """Another sign of life."""
        self._sign(step.number)
        if not self.waiting:
            return
        self.waiting = False
        load = self.run.load_seconds
        seconds = {"start": self.alive - load, "load": load, "first_step": time.monotonic() - self.built}
        event = {
            "event": "resumed",
            "restart": self.number,
            "from_step": self.from_step,
            "seconds": {part: round(spent, 3) for part, spent in seconds.items()},
        }
        try:
            restarts.write(self.run.directory, event)
        except OSError as error:
            self.run.log.say(f"warning: {restarts.FILE} cannot be written: {error.strerror}")

    def _sign(self, steps: int) -> None:
        if self.first and self.beat is not None:
            self.beat[:] = time.monotonic(), float(steps)


def _age() -> float:
    """Seconds since this process was started, or forked."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # of boot: field 22 of proc(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
