"""Triton: tokens whose squares leave fp32's range, as hcmegatron/kernels/torch_rms.py has them."""

from __future__ import annotations

import triton
import triton.language as tl

# Mean squares between which a token is taken as it is; others are scaled.
SMALLEST = tl.constexpr(2.0**-80)
LARGEST = tl.constexpr(2.0**80)


@triton.jit
def is_ordinary(square, W: tl.constexpr):
    """Whether sums of W squares are exact in fp32 and far from its ends. False for NaN."""
    return (square > W * SMALLEST) & (square < W * LARGEST)


@triton.jit
def to_one(size):
    """The power of two that brings a size near 1, where it is one in fp32: its exponent with the other sign."""
    size = tl.minimum(tl.maximum(size, 2.0**-126), 2.0**125)
    return ((254 << 23) - (size.to(tl.int32, bitcast=True) & 0x7F800000)).to(tl.float32, bitcast=True)
