"""The rule of docs/stability.md: which runs there are, and what the losses of one say. Pure; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

MARGIN = 0.8  # nats above the median of the steps before, from which a step is a spike
RISE = 0.5  # nats above its lowest median, from which a run that ends there has diverged


class Run(NamedTuple):
    """Runs of one seed have the same first weights and the same batches."""

    kind: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.kind}-{self.rate:g}-{self.seed}"


@dataclass(frozen=True)
class Record:
    """What a run has shown. What is not finite is inf.

    Attributes:
        status: of the command.
        loss: on held-out text after the last step, nats a byte; inf where the trainer ended the run.
        spikes, excess: steps that are one, and the largest excess of a step over the median before it, nats.
        forward, backward: largest composite Amax gain over the depth, (at the last observation, largest of all).
        seconds: that the run took.
    """

    run: Run
    status: int
    diverged: bool
    loss: float
    spikes: int
    excess: float
    forward: tuple[float, float]
    backward: tuple[float, float]
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Which runs there are.

    Attributes:
        rates: the grid in which every kind's best is looked for, with the first seed, ascending.
        multiples: of the best rate.
        settings: on top of configs/stability.yaml.
        window: steps that a median is taken of.
    """

    kinds: tuple[str, ...] = ("residual", "shc", "dhc", "mhc")
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 16e-3)
    multiples: tuple[int, ...] = (1, 2, 4)
    seeds: tuple[int, ...] = (1, 2, 3)
    settings: tuple[str, ...] = ()
    window: int = 50


QUICK = Plan(
    kinds=("residual", "mhc"),
    rates=(4e-3, 8e-3),
    multiples=(1, 2),
    seeds=(1, 2),
    settings=(
        f"--data.paths=[{Path(__file__).parents[2] / 'docs'}]",
        "--run.peak_tflops=0.1",
        "--model.layers=1",
        "--connection.n=2",
        "--training.steps=8",
        "--training.eval_batches=1",
        "--optimizer.warmup_steps=2",
        "--diagnostics.every=4",
    ),
    window=3,
)

Records = Mapping[Run, Record]


def grid(plan: Plan, kind: str) -> list[Run]:
    """Runs among which a kind's best rate is found."""
    return [Run(kind, rate, plan.seeds[0]) for rate in plan.rates]


def best_rate(plan: Plan, kind: str, records: Records) -> float | None:
    """That of the least loss among those that did not diverge, the lowest of the grid where all did; None where a run
    of the grid is still to be made."""
    runs = grid(plan, kind)
    if any(run not in records for run in runs):
        return None
    sound = [run for run in runs if not records[run].diverged]
    return min(sound, key=lambda run: (records[run].loss, run.rate), default=runs[0]).rate


def beyond(plan: Plan, kind: str, multiple: int, records: Records) -> list[Run]:
    """A kind's runs at a multiple of its best rate, one a seed; none while that is not known."""
    rate = best_rate(plan, kind, records)
    return [] if rate is None else [Run(kind, multiple * rate, seed) for seed in plan.seeds]


def wanted(plan: Plan, records: Records) -> list[Run]:
    """The runs that are still to be made, as far as they are known: those of the grids first."""
    runs = [run for kind in plan.kinds for run in grid(plan, kind)]
    for multiple in plan.multiples:
        runs += [run for kind in plan.kinds for run in beyond(plan, kind, multiple, records)]
    return [run for run in runs if run not in records]


def excesses(losses: Sequence[float], warmup: int, window: int) -> list[float]:
    """By how much each step's loss, from step warmup + window + 1 on, is above the median of the `window` steps before
    it; inf for a loss that is not finite."""
    return [
        loss - median(losses[step - window : step]) if math.isfinite(loss) else math.inf
        for step, loss in enumerate(losses)
        if step >= warmup + window
    ]


def spikes(excess: Sequence[float]) -> int:
    """How many steps are a spike."""
    return sum(above > MARGIN for above in excess)


def diverged(losses: Sequence[float], ended: bool, window: int) -> bool:
    """Whether the trainer `ended` the run, or its last median is far above the lowest one."""
    medians = [median(losses[step - window : step]) for step in range(window, len(losses) + 1)]
    return ended or (bool(medians) and not medians[-1] - min(medians) <= RISE)
