"""A run with an observer that asks for coefficients."""

from __future__ import annotations

import os
from collections import Counter

from hcmegatron.config.schema import Config
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training.observer import Coefficients, Observer, Step
from hcmegatron.training.run import train
from hcmegatron.training.setup import TrainingRun


class RowSums(Observer):
    """Asks for the coefficients of the second step; a figure of them in every step."""

    made: RowSums | None = None

    def __init__(self, run: TrainingRun) -> None:
        RowSums.made = self
        self.heard: Counter[int] = Counter()
        self.steps: set[int] = set()
        self.shapes: set[tuple] = set()
        self.largest = 0.0

    def wants_coefficients(self, step: int) -> bool:
        return step == 2

    def on_coefficients(self, coefficients: Coefficients) -> None:
        self.heard[coefficients.sublayer] += 1
        self.steps.add(coefficients.step)
        self.shapes.add(tuple(tuple(value.shape) for value in coefficients.values))
        assert not any(value.requires_grad for value in coefficients.values)
        self.largest = max(self.largest, float((coefficients.values[2].sum(-1) - 1).abs().max()))

    def on_step(self, step: Step) -> None:
        step.add("row_sums", self.largest, "rows off by {:.1e}")


def heard(config: Config) -> dict:
    """Train, with the observer named in the configuration; what it has heard."""
    config.run.observers = ["tests.training.observer_workers:RowSums"]
    assert train(config, discover_ranks(os.environ)) == 0
    made = RowSums.made
    return {
        "heard": dict(made.heard),
        "steps": sorted(made.steps),
        "shapes": sorted(made.shapes),
        "row_sums": made.largest,
    }
