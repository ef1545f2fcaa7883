"""What a run says and writes: progress, log file, metrics.jsonl and TensorBoard, from rank 0.

None of it is the run: where one of these places fails, the others say so once and training goes on.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hcmegatron.config.errors import ConfigError
from hcmegatron.data.dataset import Validation
from hcmegatron.training.sink import Sink

Metrics = dict[str, float | int]


class Recorder:
    """Writes lines to the log file and the terminal, and numbers to metrics.jsonl and TensorBoard.

    A terminal gets a progress bar with a line per evaluation above it; anything else gets plain lines. On ranks other
    than 0 every method does nothing.

    Args:
        directory: the run directory, which exists; None on other ranks.
        first_step: metrics of this step and later ones, left by a run that was cut off, are dropped.
        watched: whether a terminal is a person's. False under a launcher, which may give a rank a terminal whose
            output goes to a file.

    Raises:
        ConfigError: the run directory cannot be written.
    """

    def __init__(
        self, directory: Path | None, steps: int, first_step: int, tensorboard: bool, watched: bool = True
    ) -> None:
        self.active = directory is not None
        self.steps = steps
        if directory is None:
            return
        try:
            dropped = drop_later_metrics(directory / "metrics.jsonl", first_step)
            self._metrics = Sink.append(directory / "metrics.jsonl", self._report)
            self._log = Sink.append(directory / "train.log", self._report)
        except OSError as error:
            raise ConfigError(
                f"run.dir = {directory}: {error.filename} cannot be written: {error.strerror}; make room, or "
                "choose another"
            ) from None
        self._bar: Progress | None = None
        self._output = Sink("standard output", 1, self._report)
        self._events = Events(directory / "tensorboard", first_step, self._report) if tensorboard else None
        if watched and self._output.isatty():
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=Console(file=self._output),
            )
            self._task = self._bar.add_task("", total=steps, completed=first_step - 1, status="")
            self._bar.start()
            self._bar.console.show_cursor(True)  # it would stay hidden if this process were killed
        if dropped:
            self.say(f"metrics.jsonl: lines left out because they hold no metrics of a step: {dropped}")

    def say(self, *lines: str) -> None:
        """Lines for the log and the terminal."""
        if not self.active:
            return
        for line in lines:
            self._log.write(line + "\n")
            if self._bar:
                self._bar.console.print(line, markup=False, highlight=False)
            else:
                self._output.write(line + "\n")

    def step(self, step: int, metrics: Metrics, line: str, show: bool) -> None:
        """One training step's numbers; its line goes to the terminal where `show`, to the log always."""
        if not self.active:
            return
        self.write(step, metrics, "train")
        if self._bar:
            self._log.write(line + "\n")
            self._bar.update(self._task, completed=step, status=f"loss {metrics['loss']:.3f}")
        elif show:
            self.say(line)
        else:
            self._log.write(line + "\n")

    def write(self, step: int, metrics: Metrics, kind: str) -> None:
        """Numbers of `kind` (train, validation) at `step`, to metrics.jsonl and TensorBoard."""
        if not self.active:
            return
        self._metrics.write(metrics_line({"step": step, "kind": kind, **metrics}))
        if self._events:
            for name, value in metrics.items():
                self._events.add(f"{kind}/{name}", value, step)

    def validation(self, step: int, loss: float, heldout: Validation) -> None:
        """The loss on held-out text, nats a byte, beside what needs no model."""
        self.write(step, {"loss": loss}, "validation")
        self.say(
            f"step {step}: validation loss {loss:.4f} nats a byte "
            f"(uniform {heldout.uniform:.2f}, unigram {heldout.unigram:.2f})"
        )

    def _report(self, line: str) -> None:
        """What a place has to say about itself, to the others."""
        for place in (self._log, self._output):
            place.write(line + "\n")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.active:
            return
        if self._bar:
            self._bar.stop()
        if error is not None:
            self._log.write(f"ended by {kind.__name__ if kind else 'error'}: {error}\n")
        if self._events:
            self._events.close()
        self._metrics.close()
        self._log.close()


class Events:
    """TensorBoard's files, as long as they can be written."""

    def __init__(self, directory: Path, first_step: int, report: Callable[[str], None]) -> None:
        # importing TensorBoard takes a second
        from torch.utils.tensorboard import SummaryWriter

        self.directory, self._report = directory, report
        self._writer: SummaryWriter | None = None
        self._try(lambda: SummaryWriter(str(directory), purge_step=first_step), keep=True)
        # Its thread that writes raises there and in the next call here, which reports it.
        hook = threading.excepthook
        threading.excepthook = lambda raised: (
            None if type(raised.thread).__name__ == "_AsyncWriterThread" else hook(raised)
        )

    def add(self, name: str, value: float, step: int) -> None:
        """One number of a step."""
        if self._writer:
            writer = self._writer
            self._try(lambda: writer.add_scalar(name, value, step))

    def close(self) -> None:
        """Write what is left."""
        if self._writer:
            self._try(self._writer.close)

    def _try(self, call: Callable[[], Any], keep: bool = False) -> None:
        try:
            result = call()
        except OSError as error:
            self._writer = None
            self._report(
                f"{self.directory} takes no events ({error.strerror}): training goes on without TensorBoard"
            )
        else:
            self._writer = result if keep else self._writer


def metrics_line(metrics: dict[str, Any]) -> str:
    """A line of metrics.jsonl. JSON has no NaN: such numbers are null, and under "nonfinite" by name and in words."""
    odd = {
        name: str(value)
        for name, value in metrics.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    if odd:
        metrics = {name: None if name in odd else value for name, value in metrics.items()} | {
            "nonfinite": odd
        }
    return json.dumps(metrics, allow_nan=False) + "\n"


def drop_later_metrics(path: Path, first_step: int) -> int:
    """Leave out of metrics.jsonl the lines of first_step and later, and those that are no metrics of a step.

    Returns:
        how many were no metrics, such as the torn last line of a run that was killed.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines()
    steps = [_step_of(line) for line in lines]
    kept = [line for line, step in zip(lines, steps, strict=True) if step is not None and step < first_step]
    # At once or not at all: a full disk must not cost the lines that are there.
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.writelines(line + b"\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    return steps.count(None)


def _step_of(line: bytes) -> int | None:
    """Of a line of metrics.jsonl; None for what is none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or brackets without end
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if type(step) is int else None
