"""TensorBoard's files, from rank 0, as long as they can be written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hcmegatron.training.observer import End, Evaluation, Observer, Step

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from hcmegatron.diagnostics.files import Observation
    from hcmegatron.training.setup import TrainingRun

# Arrays of an observation: as grey pictures, where the last two axes are a matrix; and as histograms.
HEAT_MAPS = {"residual_map", "composite_map", "stream_similarity", "connection_matrix"}
HISTOGRAMS = {"pre", "post", "residual_diagonal", "gain_forward", "gain_backward"}
PIXELS = 8  # of an entry's side


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

    def on_observation(self, observation: Observation) -> None:
        """Figures, heat maps of matrices, and histograms of coefficients, under diagnostics/<name>."""
        for name, value in observation.scalars.items():
            self.add(f"diagnostics/{name}", value, observation.step)
        for name in HEAT_MAPS & observation.arrays.keys():
            picture = heat_map(observation.arrays[name])
            self._write(
                lambda writer, name=name, picture=picture: writer.add_image(
                    f"diagnostics/{name}", picture, observation.step, dataformats="HW"
                )
            )
        for name in HISTOGRAMS & observation.arrays.keys():
            values = observation.arrays[name]
            if np.isfinite(values).all():  # TensorBoard has no bucket for others, and raises
                self._write(
                    lambda writer, name=name, values=values: writer.add_histogram(
                        f"diagnostics/{name}", values, observation.step
                    )
                )

    def on_end(self, end: End) -> None:
        """Write what is left."""
        if self._writer:
            self._try(self._writer.close)
        threading.excepthook = self._usual_hook

    def add(self, name: str, value: float, step: int) -> None:
        """One number of a step."""
        self._write(lambda writer: writer.add_scalar(name, value, step))

    def _write(self, call: Callable[[SummaryWriter], None]) -> None:
        if self._writer:
            writer = self._writer
            self._try(lambda: call(writer))

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


def heat_map(array: np.ndarray) -> np.ndarray:
    """[..., rows, columns] -> a picture [height, width] of bytes: matrices beside each other in the order of their
    sub-layers, from black (the least finite entry of all) to white (the largest), with a grey line between them."""
    matrices = array.reshape(-1, *array.shape[-2:])
    finite = matrices[np.isfinite(matrices)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    matrices = np.clip(np.nan_to_num(matrices, nan=low), low, high)
    grey = np.rint(255 * (matrices - low) / max(high - low, np.finfo(float).tiny))
    tiles = np.kron(grey, np.ones((PIXELS, PIXELS)))
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 2)), constant_values=128)
    return np.concatenate(list(tiles), 1)[:, :-2].astype(np.uint8)
