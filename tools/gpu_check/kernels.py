"""Triton kernels of the probes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fresh(x_ptr, n: tl.constexpr):  # noqa: ANN001, ANN201, a kernel
    """x = 3 x + 1 for n elements: nobody else's, so that it is not loaded."""
    at = tl.arange(0, n)
    tl.store(x_ptr + at, tl.load(x_ptr + at) * 3.0 + 1.0)


@triton.jit
def places(seen_ptr, spins, threads: tl.constexpr):  # noqa: ANN001, ANN201, a kernel
    """seen[multiprocessor] = 1 for every one that a program has run on, each for a while."""
    number = tl.inline_asm_elementwise("mov.u32 $0, %smid;", "=r", [], tl.int32, is_pure=False, pack=1)
    tl.store(seen_ptr + number, 1)
    at = tl.arange(0, threads)
    x = at.to(tl.float32)
    for _ in range(spins):
        x = x * 0.999 + 1.0
    tl.store(seen_ptr + number, tl.where(tl.sum(x) < 0, 2, 1))
