"""Ends a run whose loss has stayed no better than a guess: it has diverged, and every further step is wasted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from hcmegatron.platform.collective_failure import on_first_rank
from hcmegatron.training.bad_steps import Diverged
from hcmegatron.training.observer import Observer, Rewind, Step

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun


class Divergence(Observer):
    """Counts steps in a row, after the warmup, whose loss is not below ln(tokens): that of a guess among all tokens,
    which is about where every network begins.

    The count is a function of metrics.jsonl, so a run that was cut off ends at the step at which it would have ended.
    Collective.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.limit, self.warmup = run.config.health.diverged_after, run.config.optimizer.warmup_steps
        self.guess = math.log(run.text.tokenizer.vocab_size)
        self.metrics = run.directory / "metrics.jsonl"
        self.row = self._before(run.position.step)

    def on_step(self, step: Step) -> None:
        """Count it.

        Raises:
            Diverged: it was the last of health.diverged_after.
        """
        if step.number <= self.warmup:
            return
        self.row = 0 if step.result.loss < self.guess else self.row + 1
        if self.row >= self.limit:
            raise Diverged(
                f"after step {step.number} the loss has been {self.guess:.3f} or more, that of a guess, for {self.row} "
                f"steps: health.diverged_after is {self.limit}"
            )

    def on_rewind(self, rewind: Rewind) -> None:
        """The steps come once more, and the row is as it was before them."""
        self.row = self._before(rewind.to.step)

    def _before(self, done: int) -> int:
        """How many steps in a row it were after step `done`, with which the run goes on."""
        return on_first_rank(lambda: self._counted(self.metrics, done))

    def _counted(self, metrics: Path, done: int) -> int:
        if done <= self.warmup or not metrics.exists():
            return 0
        row = 0
        for line in metrics.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # torn, by the end of that run
                continue
            if entry.get("kind") == "train" and self.warmup < entry["step"] <= done:
                loss = entry["loss"]  # null: not finite
                row = 0 if loss is not None and loss < self.guess else row + 1
        return row
