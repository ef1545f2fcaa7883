"""Observers that make a run go wrong, for the tests of what watches it; `run.observers` names them."""

from __future__ import annotations

import io
import os
import signal
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from hcmegatron import cli
from hcmegatron.config.schema import Config
from hcmegatron.training.manifest import Progress
from hcmegatron.training.observer import Observer, Rewind, Step
from hcmegatron.training.setup import TrainingRun
from tests.training import checkpoint_workers


class Poison(Observer):
    """Whatever step takes a sample of POISON=first:number[,first:number] has that number added to its loss."""

    def __init__(self, run: TrainingRun) -> None:
        poison = dict(pair.split(":") for pair in os.environ["POISON"].split(",") if pair)
        stepper, usual = run.stepper, run.stepper.gradients

        def gradients(seen: int) -> tuple:
            sums, waited = usual(seen)
            taken = stepper.batches.samples(seen)
            sums[0] += sums[1] * sum(float(number) for first, number in poison.items() if int(first) in taken)
            return sums, waited

        stepper.gradients = gradients


class StopAfterRewind(Observer):
    """Tells the run to stop when the first step after a rewind has ended."""

    rewound = False

    def on_rewind(self, rewind: Rewind) -> None:
        self.rewound = True

    def on_step(self, step: Step) -> None:
        if self.rewound:
            os.kill(os.getpid(), signal.SIGTERM)


def trained(config: Config, poison: str = "", left_out: tuple = (), stop: bool = False) -> dict[str, Any]:
    """Train; per saved step a hash of weights and optimizer, and the samples that this rank took, in order.

    Args:
        poison: see Poison.
        left_out: of the data, from the first step on.
        stop: after the first step that follows a rewind.
    """
    os.environ["POISON"] = poison
    config.run.observers = [f"{__name__}:Poison"] * bool(poison) + [f"{__name__}:StopAfterRewind"] * stop
    usual = TrainingRun.go_on_at

    def with_left_out(self: TrainingRun, position: Progress) -> None:
        usual(self, position._replace(left_out=(*left_out, *position.left_out)))

    TrainingRun.go_on_at = with_left_out
    return checkpoint_workers.continued(config)


def replayed(path: Path) -> str:
    """What the command prints of a kept step."""
    with redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["replay", str(path)]) == 0
    return printed.getvalue()
