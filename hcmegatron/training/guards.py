"""What ends a run before its last step: a signal, or numbers that are no longer finite."""

from __future__ import annotations

import signal

from hcmegatron.config.schema import Config
from hcmegatron.training.recorder import Recorder
from hcmegatron.training.step import StepResult


class Diverged(RuntimeError):
    """Several steps in a row had a non-finite loss or gradient."""


class StopFlag:
    """Set by SIGTERM or SIGUSR1 (SLURM's --signal); the loop ends after the step in progress and saves."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


class Finite:
    """Counts steps whose loss or gradient was not finite, says which they were, and gives up after several."""

    def __init__(self, config: Config) -> None:
        self.limit = config.training.max_bad_steps
        self.row = self.total = 0

    def check(self, step: int, result: StepResult, recorder: Recorder) -> None:
        """Look at 1-based `step`.

        Raises:
            Diverged: it was the last of training.max_bad_steps in a row.
        """
        if result.updated:
            self.row = 0
            return
        self.row += 1
        self.total += 1
        samples = result.samples
        where = f"step {step}, sequences {samples[0]} to {samples[-1]} of the data order"
        recorder.say(
            f"skipped: loss {result.loss}, gradient norm {result.grad_norm} at {where}; {self.total} skipped so far"
        )
        if self.row >= self.limit:
            raise Diverged(
                f"{self.row} non-finite steps in a row; the last was {where}; weights are as before them"
            )
