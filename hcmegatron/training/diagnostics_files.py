"""diagnostics.jsonl and the arrays of observations, from rank 0 (diagnostics/files.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hcmegatron.config.errors import ConfigError
from hcmegatron.diagnostics.files import ARRAYS, LINES, Observation, drop_later_arrays, write_arrays
from hcmegatron.training.observer import End, Observer, Rewind
from hcmegatron.training.recorder import drop_later_metrics
from hcmegatron.training.sink import Sink, writable

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun


class DiagnosticsFiles(Observer):
    """Writes observations, as long as they can be written. Those of the run's first step and later ones, left by a run
    that was cut off, are dropped.

    Raises:
        ConfigError: the run directory cannot be written.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.directory, self.log, self.failed = run.directory, run.log, False
        self._open_after(run.position.step)

    def on_observation(self, observation: Observation) -> None:
        """A file of arrays where there are any, then the line: who has read that finds them."""
        if observation.arrays:
            self._write_arrays(observation)
        self._lines.write(observation.line)

    def _write_arrays(self, observation: Observation) -> None:
        try:
            write_arrays(self.directory, observation)
        except OSError as error:
            if not self.failed:
                self.log.report(
                    f"{self.directory / ARRAYS} takes no arrays ({error.strerror}): training goes on, without those "
                    "that do not fit"
                )
            self.failed = True

    def on_rewind(self, rewind: Rewind) -> None:
        """Observations of the steps that come once more are dropped."""
        before = self._lines
        before.write("")  # what is waiting for room
        try:
            self._open_after(rewind.to.step)
        except ConfigError as error:  # a full disk, say: no reason to lose the run
            self.log.report(f"{LINES} has repeated steps twice, and training goes on: {error}")
        else:
            before.close()

    def on_end(self, end: End) -> None:
        """Write what is left."""
        self._lines.close()

    def _open_after(self, step: int) -> None:
        with writable(self.directory):
            drop_later_metrics(self.directory / LINES, step + 1)
            drop_later_arrays(self.directory, step)
            self._lines = Sink.append(self.directory / LINES, self.log.report)
