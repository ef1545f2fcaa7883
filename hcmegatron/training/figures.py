"""A step's figures for the log: rates, utilisation, memory."""

from __future__ import annotations

import resource
import time
from datetime import timedelta

import torch

from hcmegatron.config.schema import Config
from hcmegatron.planner.flops import training_flops_per_token
from hcmegatron.training.recorder import Metrics
from hcmegatron.training.step import StepResult

GIB = 2**30


def peak_memory_gib() -> float:
    """Most memory that this rank has held: of the device, or the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


class Figures:
    """Turns step results into metrics and one line.

    Args:
        peak_tflops: of one rank's device.
    """

    def __init__(self, config: Config, vocab_size: int, world_size: int, peak_tflops: float) -> None:
        self.steps = config.training.steps
        self.tokens = config.training.global_batch * config.data.sequence_length
        self.tflop = self.tokens * training_flops_per_token(config, vocab_size) / 1e12
        self.world_size, self.peak = world_size, peak_tflops
        self.began = self.last = time.perf_counter()
        self.done = 0  # steps of this process

    def start(self) -> None:
        """Begin timing: what went before belongs to no step."""
        self.last = time.perf_counter()
        if not self.done:
            self.began = self.last

    def of(self, step: int, result: StepResult, rate: float) -> tuple[Metrics, str]:
        """Metrics of 1-based `step`, which ended now, and its line."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        self.done += 1
        elapsed = now - self.began
        left = elapsed / self.done * (self.steps - step)  # validation and checkpoints take their share
        tflops = self.tflop / seconds / self.world_size
        metrics: Metrics = {
            "loss": result.loss,
            "lr": rate,
            "grad_norm": result.grad_norm,
            "tokens_per_s": self.tokens / seconds,
            "tflops_per_rank": tflops,
            "mfu": tflops / self.peak,
            "memory_gib": peak_memory_gib(),
            "data_wait": result.waited / seconds,
            "seconds": seconds,
        }
        line = (
            f"step {step:>{len(str(self.steps))}}/{self.steps}  loss {result.loss:.4f}  lr {rate:.2e}"
            f"  |g| {result.grad_norm:.3f}  {metrics['tokens_per_s']:,.0f} tokens/s  {tflops:.4f} TFLOP/s"
            f"  MFU {metrics['mfu']:.1%}  {metrics['memory_gib']:.2f} GiB  data {metrics['data_wait']:.1%}"
            f"  {clock(elapsed)} elapsed, {clock(left)} left"
        )
        return metrics, line
