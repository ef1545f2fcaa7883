"""Weights & Biases (the package wandb, an extra), from rank 0, as long as it answers.

`run.wandb` is online or offline; project, entity and name are those of W&B's own environment variables
(WANDB_PROJECT, ...). An offline run is in the run directory, and `wandb sync` uploads it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hcmegatron.config.types import flatten
from hcmegatron.platform.collective_failure import in_one_line
from hcmegatron.training.observer import End, Evaluation, Observer, Step

if TYPE_CHECKING:
    from hcmegatron.diagnostics.files import Observation
    from hcmegatron.training.setup import TrainingRun

ID = "wandb.id"  # in the run directory: a run that is resumed goes on under its first name


class WeightsAndBiases(Observer):
    """Every figure under train/<name>, validation/<name>, test/<name> or diagnostics/<name>, over `step`, and the
    configuration."""

    def __init__(self, run: TrainingRun) -> None:
        import wandb

        self._report = run.log.report
        self._run: Any = None
        kept = run.directory / ID

        def begin() -> Any:
            begun = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "hcmegatron"),
                name=os.environ.get("WANDB_NAME", run.directory.name),
                id=kept.read_text().strip() if kept.exists() else None,
                dir=run.directory,
                config=flatten(run.config),
                mode=run.config.run.wandb,
                resume="allow" if run.config.run.wandb == "online" else None,
                settings=wandb.Settings(console="off", quiet=True),
            )
            kept.write_text(begun.id + "\n")
            # An axis of our own: W&B's takes nothing for steps before the last one, which a rewind repeats.
            begun.define_metric("step")
            begun.define_metric("train/*", step_metric="step")
            begun.define_metric("validation/*", step_metric="step")
            begun.define_metric("test/*", step_metric="step")
            begun.define_metric("diagnostics/*", step_metric="step")
            return begun

        self._run = self._try(begin)

    def on_step(self, step: Step) -> None:
        """All figures of a step."""
        self._log(step.number, {f"train/{name}": value for name, value in step.metrics.items()})

    def on_eval(self, evaluation: Evaluation) -> None:
        """The loss on held-out text."""
        self._log(
            evaluation.step,
            {f"{evaluation.kind}/{name}": value for name, value in evaluation.figures.items()},
        )

    def on_observation(self, observation: Observation) -> None:
        """What the connections did, in figures."""
        figures = {f"diagnostics/{name}": value for name, value in observation.scalars.items()}
        self._log(observation.step, figures)

    def on_end(self, end: End) -> None:
        """Hand over what is left; a run that failed is marked so."""
        if self._run:
            self._try(lambda: self._run.finish(exit_code=1 if end.error else 0))

    def _log(self, step: int, figures: dict[str, float]) -> None:
        if self._run:
            self._try(lambda: self._run.log({"step": step, **figures}))

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # of a service elsewhere, for which a run is not to end
            self._run = None
            self._report(f"Weights & Biases failed ({in_one_line(error)}): training goes on without it")
            return None
