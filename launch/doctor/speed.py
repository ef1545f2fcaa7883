"""How fast a rank's device multiplies and copies. Imports torch, where it is called."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from hcmegatron.platform.waiting import waited_ns

if TYPE_CHECKING:
    import torch

LEAST = 5  # samples
# cube sizes: large enough for the full rate of a GPU; a few milliseconds of a core
GPU_SIZE, CPU_SIZE, GPU_COPY, CPU_COPY = 8192, 512, 1 << 30, 32 << 20


class Speed(NamedTuple):
    """A rate.

    Attributes:
        median: of the samples: what the device can do.
        mean: over the whole time, pauses included: what a run gets of it.
        spread: (largest - smallest of the middle half of the samples) / median.
        waited: share of the time in which this thread waited for a core that others had; 0 of a GPU.
    """

    median: float
    mean: float
    spread: float
    waited: float

    @property
    def undisturbed(self) -> float:
        """The mean without the time of waiting for a core."""
        return self.mean / max(1e-3, 1 - self.waited)


def device(local_rank: int) -> torch.device:
    """This rank's; the only one where it sees one. That there are fewer than ranks, checks say (devices.py)."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def device_name(on: torch.device) -> str:
    """As the driver calls it; of a CPU its machine and cores."""
    import torch

    if on.type == "cuda":
        return torch.cuda.get_device_name(on)
    return f"{platform.node() or 'this machine'}, {len(os.sched_getaffinity(0))} cores"


def matmul_tflops(on: torch.device, dtype: str | None, seconds: float) -> Speed:
    """TFLOP/s of square matmuls of random numbers: zeros would draw less power, and clocks stay up.

    Args:
        dtype: the run's; None: bf16 on a GPU, fp32 on a CPU.
    """
    import torch

    kind = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
    size = GPU_SIZE if on.type == "cuda" else CPU_SIZE
    dtype = dtype or ("bf16" if on.type == "cuda" else "fp32")
    a, b = (torch.randn(size, size, device=on).to(kind[dtype]) for _ in range(2))
    out = torch.empty_like(a)
    return _speed(on, lambda: torch.mm(a, b, out=out), 2 * size**3 / 1e12, seconds)


def copy_tbs(on: torch.device, seconds: float) -> Speed:
    """TB/s of a copy in the device's memory, reads and writes counted."""
    import torch

    size = GPU_COPY if on.type == "cuda" else CPU_COPY
    source = torch.ones(size, dtype=torch.uint8, device=on)
    target = torch.empty_like(source)
    return _speed(on, lambda: target.copy_(source), 2 * size / 1e12, seconds)


def memory_gib(on: torch.device, local_world_size: int) -> float:
    """The device's, or this rank's share of the machine's."""
    import psutil
    import torch

    if on.type == "cuda":
        return torch.cuda.get_device_properties(on).total_memory / 2**30
    return psutil.virtual_memory().total / local_world_size / 2**30


def _speed(on: torch.device, run: Callable[[], object], amount: float, seconds: float) -> Speed:
    """Of `amount` a run, for so many seconds."""
    import torch

    def once() -> float:
        begin = time.perf_counter()
        run()
        if on.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    once()
    begin, before, rates = time.perf_counter(), waited_ns(), []
    while len(rates) < LEAST or time.perf_counter() < begin + seconds:
        rates.append(amount / once())
    took = time.perf_counter() - begin
    waited = 0.0 if on.type == "cuda" else min(1.0, (waited_ns() - before) / 1e9 / took)
    low, middle, high = statistics.quantiles(rates, n=4)
    return Speed(middle, len(rates) * amount / took, (high - low) / middle, waited)
