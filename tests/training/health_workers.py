"""Observers that make a run go wrong, for the tests of what watches it; `run.observers` names them."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from hcmegatron import cli
from hcmegatron.config import Config, ConfigError
from hcmegatron.model.gpt import unwrap
from hcmegatron.platform.exit_status import CORRUPTED
from hcmegatron.platform.ranks import discover_ranks
from hcmegatron.training import replay_cli
from hcmegatron.training.manifest import Progress
from hcmegatron.training.observer import Coefficients, Observer, Rewind, Step
from hcmegatron.training.replica_check import Corrupted
from hcmegatron.training.run import train
from hcmegatron.training.setup import TrainingRun
from hcmegatron.training.step import Stepper
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


class Damage(Observer):
    """The first checkpoint of step 4 loses its last byte when it is saved, and the tokenizer its file."""

    def __init__(self, run: TrainingRun) -> None:
        self.checkpoint = run.directory / "checkpoints/step-00000004"
        self.tokenizer = Path(run.config.data.tokenizer)
        self.done = False

    def on_checkpoint(self, saved: Progress) -> None:
        if saved.step == 4 and not self.done:
            self.done = True
            file = next(self.checkpoint.glob("*.distcp"))
            file.write_bytes(file.read_bytes()[:-1])
            self.tokenizer.unlink()


def damaged(config: Config, poison: str) -> None:
    """Train, with Poison and Damage."""
    os.environ["POISON"] = poison
    watched(config, [f"{__name__}:Poison", f"{__name__}:Damage"])


def replayed(path: Path) -> str:
    """What the command prints of a kept step."""
    with redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["replay", str(path)]) == 0
    return printed.getvalue()


def replayed_with(config: Config, poison: str, settings: list[dict[str, Any]]) -> list[str]:
    """Train, with Poison; then replay the step that was kept as if its run had had other `settings`, one after another.

    Returns:
        What is printed, or of a mistake of the user's the error.
    """
    os.environ["POISON"] = poison
    watched(config, [f"{__name__}:Poison"])
    (kept,) = Path(config.run.dir).glob("anomalies/*.json")
    whole, said = json.loads(kept.read_text()), []
    for changes in settings:
        kept.write_text(json.dumps({**whole, "config": {**whole["config"], **changes}}))
        with redirect_stdout(io.StringIO()) as printed:
            try:
                replay_cli.main(Namespace(path=kept, checkpoint=None))
                said.append(printed.getvalue())
            except ConfigError as error:
                said.append(str(error))
    return said


class Flip(Observer):
    """After step 2 a bit of one of rank 1's norms is another."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run

    def on_step(self, step: Step) -> None:
        if step.number == 2 and self.run.ranks.rank == 1:
            weights = next(
                weights
                for chunk in self.run.chunks
                for name, weights in chunk.named_parameters()
                if name.endswith("layernorm.weight")
            )
            bits = weights.data.view(torch.int32 if weights.element_size() == 4 else torch.int16)
            bits[3] ^= 1 << 2


class Miscount(Observer):
    """From step 2 on, rank 2's first norm is a little off: in what it computes, not in what it holds."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run

    def on_step(self, step: Step) -> None:
        if step.number == 1 and self.run.ranks.rank == 2:
            norm = next(m for n, m in self.run.chunks[0].named_modules() if n.endswith("final_layernorm"))
            norm.register_forward_hook(lambda module, inputs, output: output * 1.01)


def compared(config: Config, observers: list[str]) -> str:
    """Train with a comparison after every step, or as configured; how the run ended.

    Comparing leaves weights and buffers alone.
    """
    usual = Stepper.own_gradients

    def without_a_trace(self: Stepper, seen: int) -> torch.Tensor:
        models = [unwrap(chunk) for chunk in self.chunks]
        held = [t for model in models for t in (*model.parameters(), *model.buffers())]
        before = [tensor.detach().clone() for tensor in held]
        sums = usual(self, seen)
        assert all(map(torch.equal, before, held))
        return sums

    Stepper.own_gradients = without_a_trace
    config.run.observers = observers
    config.health.compare_parameters_every = config.health.compare_parameters_every or 1
    try:
        assert train(config, discover_ranks(os.environ)) == 0
    except Corrupted as error:
        assert error.status == CORRUPTED
        return str(error)
    return ""


class Sleeper(Observer):
    """From step 11 on rank 1 sleeps in every forward of a connection."""

    def __init__(self, run: TrainingRun) -> None:
        self.rank = run.ranks.rank

    def wants_coefficients(self, step: int) -> bool:
        return self.rank == 1 and step > 10

    def on_coefficients(self, coefficients: Coefficients) -> None:
        time.sleep(0.1)


def watched(config: Config, observers: list[str]) -> None:
    """Train."""
    config.run.observers = observers
    assert train(config, discover_ranks(os.environ)) == 0
