"""Triton: the product of the streams with phi on tensor cores, and the sum of their squares (2512.24880, Eq. 14-15)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def times_phi(h, phi, projected, PRECISION: tl.constexpr):
    """projected + h phi.

    PRECISION: "ieee" or "tf32", of fp32 products; or "split": h is bf16, and phi the sum of three bf16 numbers, which
    hold all of its 24 bits, so that products are exact at the speed of bf16. "split, widened" is the same for the
    interpreter, whose products of bf16 are wrong.
    """
    if PRECISION == "split" or PRECISION == "split, widened":
        high = phi.to(tl.bfloat16)
        rest = phi - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        if PRECISION == "split, widened":
            h, high, middle, low = (
                h.to(tl.float32),
                high.to(tl.float32),
                middle.to(tl.float32),
                low.to(tl.float32),
            )
        projected = tl.dot(h, high, projected)
        projected = tl.dot(h, middle, projected)
        projected = tl.dot(h, low, projected)
    else:
        projected = tl.dot(h.to(tl.float32), phi, projected, input_precision=PRECISION)
    return projected


@triton.jit(do_not_specialize=["T"])
def project(
    H,
    PHI,
    PROJ,
    SQUARE,
    T,
    W: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    SPAN: tl.constexpr,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    V: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Grid (ceil(T / BT), ceil(W / SPAN)). Part p of the W = n C elements of a token, SPAN of them, a multiple of BC:
    PROJ [parts, T, K] = H phi over it, and SQUARE [parts, T] the sum of its squares."""
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    part = tl.program_id(1)
    inside = rows < T
    base = rows.to(tl.int64)[:, None] * W
    columns = tl.arange(0, KP)
    projected = tl.zeros([BT, KP], tl.float32)
    squares = tl.zeros([BT, BC // V], tl.float32)  # V neighbours, which one thread holds, are added at once
    for start in tl.range(0, SPAN, BC, num_stages=STAGES):
        at = part * SPAN + start + tl.arange(0, BC)
        if W % SPAN == 0:
            h = tl.load(H + base + at[None, :], mask=inside[:, None], other=0.0)
            phi = tl.load(PHI + at[:, None] * K + columns[None, :], mask=(columns < K)[None, :], other=0.0)
        else:
            h = tl.load(H + base + at[None, :], mask=inside[:, None] & (at < W)[None, :], other=0.0)
            weights = (at < W)[:, None] & (columns < K)[None, :]
            phi = tl.load(PHI + at[:, None] * K + columns[None, :], mask=weights, other=0.0)
        projected = times_phi(h, phi, projected, PRECISION)
        h = h.to(tl.float32)
        squares += tl.sum(tl.reshape(h * h, [BT, BC // V, V]), axis=2)
    first = part.to(tl.int64) * T
    mask = inside[:, None] & (columns < K)[None, :]
    tl.store(PROJ + (first + rows)[:, None] * K + columns[None, :], projected, mask=mask)
    tl.store(SQUARE + first + rows, tl.sum(squares, axis=1), mask=inside)
