"""Triton: mHC's logits out of the projection, in the shapes of pre, post and res (2512.24880, Eq. 14-19).

A part is pre, post or res. Its logits are scale * t + bias, where scale and bias have pointers of their own: the
scale is one number for all columns of a part (SCALE_STRIDE 0: the alphas as the module owns them) or one a column (1).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def vector(
    t,
    SCALE,
    BIAS,
    rows,
    inside,
    start: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    NP: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
):
    """(t, logits, scale) of pre or post, the N columns of phi from `start`: [BT,NP], [BT,NP], [1,NP]. Scale is 0
    in the padding."""
    at = tl.arange(0, NP)
    value = tl.load(
        t + rows[:, None] * K + start + at[None, :], mask=inside[:, None] & (at < N)[None, :], other=0.0
    )
    scale = tl.load(SCALE + at * SCALE_STRIDE, mask=at < N, other=0.0)[None, :]
    bias = tl.load(BIAS + at, mask=at < N, other=0.0)[None, :]
    return value, value * scale + bias, scale


@triton.jit
def entries(N: tl.constexpr, NP: tl.constexpr, TRANSPOSED: tl.constexpr):
    """(offset in a row-major n x n matrix, validity) of entry (a, b): [1,NP,NP]; (b, a) where transposed."""
    a = tl.arange(0, NP)[None, :, None]
    b = tl.arange(0, NP)[None, None, :]
    at = b * N + a if TRANSPOSED else a * N + b
    return at, (a < N) & (b < N)


@triton.jit
def matrix(
    t,
    SCALE,
    BIAS,
    rows,
    inside,
    start: tl.constexpr,
    at,
    entry,
    outside,
    K: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
):
    """The same for res: t and logits [BT,NP,NP], scale [1,NP,NP]; logits are `outside` in the padding."""
    valid = inside[:, None, None] & entry
    value = tl.load(t + rows[:, None, None] * K + start + at, mask=valid, other=0.0)
    scale = tl.load(SCALE + at * SCALE_STRIDE, mask=entry, other=0.0)
    bias = tl.load(BIAS + at, mask=entry, other=0.0)
    return value, tl.where(entry, value * scale + bias, outside), scale


@triton.jit
def res_comes_first(program):
    """Whether a program makes res before it walks its streams (1) or after (0).

    Sinkhorn is a chain of some hundred dependent steps, microseconds during which a program moves no memory. Where one
    wave holds all programs they would all be at it at the same time, so half of them take turns with the other half.
    The choice is a bit of a multiplicative hash: the programs that share a multiprocessor, whose numbers lie as far
    apart as there are of those, must not all fall into the same half.
    """
    return ((program * -1640531527) >> 31) & 1  # 2^32 over the golden ratio
