"""The figures of a step: rates, utilisation, memory. To add one, add a line to FIGURES."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import torch

from hcmegatron.model.transformer_config import DTYPES
from hcmegatron.planner.flops import training_flops_per_token
from hcmegatron.platform.peak_flops import peak_tflops
from hcmegatron.training.observer import Observer, Step

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun

GIB = 2**30


class StepWork(NamedTuple):
    """What a step of a run is measured by.

    Attributes:
        tokens: of all ranks.
        tflop: of all ranks, as the model has them (nothing computed again).
        peak: TFLOP/s of one rank's device.
    """

    tokens: int
    tflop: float
    ranks: int
    peak: float


class Figure(NamedTuple):
    """A figure of every step: its name, its value, and its words in the log line ("": not in it)."""

    name: str
    of: Callable[[Step, StepWork], float]
    words: str = ""


def tflops_per_rank(step: Step, work: StepWork) -> float:
    """TFLOP/s of one rank."""
    return work.tflop / step.seconds / work.ranks


FIGURES = (
    Figure("loss", lambda step, work: step.result.loss, "loss {:.4f}"),
    Figure("lr", lambda step, work: step.learning_rate, "lr {:.2e}"),
    Figure("grad_norm", lambda step, work: step.result.grad_norm, "|g| {:.3f}"),
    Figure("tokens_per_s", lambda step, work: work.tokens / step.seconds, "{:,.0f} tokens/s"),
    Figure("tflops_per_rank", tflops_per_rank, "{:.4f} TFLOP/s"),
    Figure("mfu", lambda step, work: tflops_per_rank(step, work) / work.peak, "MFU {:.1%}"),
    Figure("memory_gib", lambda step, work: peak_memory_gib(), "{:.2f} GiB"),
    Figure("data_wait", lambda step, work: step.result.waited / step.seconds, "data {:.1%}"),
    Figure("seconds", lambda step, work: step.seconds),
)


class Metrics(Observer):
    """Adds FIGURES to every step, and to its log line how long the run has taken and will take."""

    def __init__(self, run: TrainingRun, clock: Callable[[], float] = time.perf_counter) -> None:
        config = run.config
        self.steps, self.clock = config.training.steps, clock
        peak, name = peak_tflops(config.run.peak_tflops, DTYPES[config.training.dtype])
        tokens = config.training.global_batch * config.data.sequence_length
        tflop = tokens * training_flops_per_token(config, run.vocab_size) / 1e12
        self.work = StepWork(tokens, tflop, run.ranks.world_size, peak)
        self.done = 0  # steps of this process
        run.log.say(f"MFU is of {peak:.3g} TFLOP/s a rank ({name})")

    def on_start(self) -> None:
        """What went before belongs to no step."""
        self.began = self.clock()

    def on_step(self, step: Step) -> None:
        """Add the figures."""
        self.done += 1
        for name, of, words in FIGURES:
            step.add(name, of(step, self.work), words)
        elapsed = self.clock() - self.began
        # evaluation and checkpoints take their share
        left = elapsed / self.done * (self.steps - step.number)
        step.shown.append(f"{clock(elapsed)} elapsed, {clock(left)} left")


def peak_memory_gib() -> float:
    """Most memory that this rank has held: of the device, or the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
