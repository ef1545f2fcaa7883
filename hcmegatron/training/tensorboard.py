"""TensorBoard's files, from rank 0, as long as they can be written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hcmegatron.training.observer import End, Evaluation, Observer, Step

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from hcmegatron.training.setup import TrainingRun


class TensorBoard(Observer):
    """Every figure under train/<name>, validation/<name> or test/<name>."""

    def __init__(self, run: TrainingRun) -> None:
        # importing TensorBoard takes a second
        from torch.utils.tensorboard import SummaryWriter

        self.directory, self._report = run.directory / "tensorboard", run.log.report
        self._writer: SummaryWriter | None = None
        first_step = run.position.step + 1
        self._try(lambda: SummaryWriter(str(self.directory), purge_step=first_step), keep=True)
        # Its thread that writes raises there and in the next call here, which reports it.
        usual = self._usual_hook = threading.excepthook
        threading.excepthook = lambda raised: (
            None if type(raised.thread).__name__ == "_AsyncWriterThread" else usual(raised)
        )

    def on_step(self, step: Step) -> None:
        """All figures of a step."""
        for name, value in step.metrics.items():
            self.add(f"train/{name}", value, step.number)

    def on_eval(self, evaluation: Evaluation) -> None:
        """The loss on held-out text."""
        for name, value in evaluation.figures.items():
            self.add(f"{evaluation.kind}/{name}", value, evaluation.step)

    def on_end(self, end: End) -> None:
        """Write what is left."""
        if self._writer:
            self._try(self._writer.close)
        threading.excepthook = self._usual_hook

    def add(self, name: str, value: float, step: int) -> None:
        """One number of a step."""
        if self._writer:
            writer = self._writer
            self._try(lambda: writer.add_scalar(name, value, step))

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
