"""The arithmetic peak that MFU is measured against, with its name."""

from __future__ import annotations

import time

import torch

from hcmegatron.planner.machines import of_device


def peak_tflops(configured: float | None, dtype: torch.dtype) -> tuple[float, str]:
    """TFLOP/s of this rank's device, and where the figure comes from.

    A configured value wins; a known GPU has its data sheet's dense bf16 figure; otherwise (CPU, unknown GPU) a
    matmul is timed here with the threads that training will have.
    """
    if configured is not None:
        return configured, "run.peak_tflops"
    if torch.cuda.is_available():
        known = of_device(torch.cuda.get_device_name())
        if known is not None:
            return known.peak_tflops, f"{known.name.upper()} dense bf16"
    return _measured(dtype), f"measured {str(dtype).removeprefix('torch.')} matmul"


def _measured(dtype: torch.dtype, size: int = 768, seconds: float = 0.15) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    a @ b
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12
