"""What a run says and writes: progress, log file, metrics.jsonl and TensorBoard, from rank 0."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hcmegatron.data.dataset import Validation

Metrics = dict[str, float | int]


class Recorder:
    """Writes lines to the log file and the terminal, and numbers to metrics.jsonl and TensorBoard.

    A terminal gets a progress bar with a line per evaluation above it; anything else gets plain lines. On ranks other
    than 0 every method does nothing.

    Args:
        directory: the run directory, which exists; None on other ranks.
        first_step: metrics of this step and later ones, left by a run that was cut off, are dropped.
    """

    def __init__(self, directory: Path | None, steps: int, first_step: int, tensorboard: bool) -> None:
        self.active = directory is not None
        self.steps = steps
        if directory is None:
            return
        self._metrics = _truncated(directory / "metrics.jsonl", first_step)
        self._log = (directory / "train.log").open("a")
        self._events = None
        if tensorboard:
            # importing TensorBoard takes a second
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step)
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=Console(),
            )
            self._task = self._bar.add_task("", total=steps, completed=first_step - 1, status="")
            self._bar.start()

    def say(self, *lines: str) -> None:
        """Lines for the log and the terminal."""
        if not self.active:
            return
        for line in lines:
            self._log.write(line + "\n")
            if self._bar:
                self._bar.console.print(line, markup=False, highlight=False)
            else:
                print(line, flush=True)
        self._log.flush()

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
        self._metrics.write(json.dumps({"step": step, "kind": kind, **metrics}) + "\n")
        self._metrics.flush()
        if self._events:
            for name, value in metrics.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def validation(self, step: int, loss: float, heldout: Validation) -> None:
        """The loss on held-out text, nats a byte, beside what needs no model."""
        self.write(step, {"loss": loss}, "validation")
        self.say(
            f"step {step}: validation loss {loss:.4f} nats a byte "
            f"(uniform {heldout.uniform:.2f}, unigram {heldout.unigram:.2f})"
        )

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
        self._log.close()
        self._metrics.close()
        if self._events:
            self._events.close()


def _truncated(path: Path, first_step: int) -> TextIO:
    """metrics.jsonl opened for appending, without lines of first_step and later and without a torn last line."""
    if path.exists():
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] < first_step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                break
        path.write_text("".join(kept))
    return path.open("a")
