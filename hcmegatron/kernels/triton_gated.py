"""Triton: what of the gated residual's read (2608.30320) is as wide as the streams; its products are torch's.

Streams R are [T,N,C], contiguous. Normed streams Rh = gamma R / rms(R) are written once, in fp32, for the products to
read; the other kernels make them again from R, which has half the bytes where it is of 16 bits. Gates are sigmoid of
LOGITS [T,N,C], fp32. INVERSE [T,N] is 1 / rms of a stream multiplied by SHIFT [T,N], a power of two (1 unless its
squares would leave fp32's range).
"""

from __future__ import annotations

import triton
import triton.language as tl

from hcmegatron.kernels import triton_rms as rms


@triton.jit
def _inverse(
    R,
    base,
    inside,
    EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    C: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """(1 / rms, shift) [BT] of the C numbers from R + base [BT,1] on; 0 for zeros without epsilon."""
    squares = tl.zeros([BT, BC], tl.float32)
    sizes = tl.zeros([BT, BC], tl.float32)
    for start in range(0, C, BC):
        cols = start + tl.arange(0, BC)[None, :]
        r = tl.load(R + base + cols, mask=inside[:, None] & (cols < C), other=0.0).to(tl.float32)
        squares += r * r
        sizes = tl.maximum(sizes, tl.abs(r))
    square = tl.sum(squares, axis=1)
    shift = tl.full([BT], 1.0, tl.float32)
    scaled = inside & (rms.is_ordinary(square, C) == 0)
    if tl.max(scaled.to(tl.int32), axis=0) > 0:
        shift = tl.where(scaled, rms.to_one(tl.maximum(tl.max(sizes, axis=1), FLOOR)), 1.0)
        squares = tl.zeros([BT, BC], tl.float32)
        for start in range(0, C, BC):
            cols = start + tl.arange(0, BC)[None, :]
            r = tl.load(R + base + cols, mask=inside[:, None] & (cols < C), other=0.0).to(tl.float32)
            r = r * shift[:, None]
            squares += r * r
        square = tl.sum(squares, axis=1)
    mean = square / C + EPS * shift * shift
    return tl.where(mean == 0.0, 0.0, 1.0 / tl.sqrt_rn(tl.where(mean == 0.0, 1.0, mean))), shift


@triton.jit(do_not_specialize=["T"])
def gated_norm(
    R,
    GAMMA,
    RH,
    INVERSE,
    SHIFT,
    T,
    N: tl.constexpr,
    C: tl.constexpr,
    EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    GIVEN: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """Grid (ceil(T / BT), N): RH [T,N,C] of a stream; INVERSE and SHIFT are read where GIVEN, else written."""
    token = tl.arange(0, BT)
    rows = tl.program_id(0) * BT + token
    stream = tl.program_id(1)
    inside = rows < T
    base = rows.to(tl.int64)[:, None] * (N * C) + stream * C
    if GIVEN:
        inverse = tl.load(INVERSE + rows * N + stream, mask=inside, other=0.0)
        shift = tl.load(SHIFT + rows * N + stream, mask=inside, other=1.0)
    else:
        inverse, shift = _inverse(R, base, inside, EPS, FLOOR, C, BT, BC)
        tl.store(INVERSE + rows * N + stream, inverse, mask=inside)
        tl.store(SHIFT + rows * N + stream, shift, mask=inside)
    for start in range(0, C, BC):
        cols = start + tl.arange(0, BC)[None, :]
        mask = inside[:, None] & (cols < C)
        r = tl.load(R + base + cols, mask=mask, other=0.0).to(tl.float32)
        gamma = tl.load(GAMMA + stream * C + cols, mask=cols < C, other=0.0)
        tl.store(RH + base + cols, (r * shift[:, None]) * inverse[:, None] * gamma, mask=mask)


@triton.jit(do_not_specialize=["T"])
def gated_mix(
    R,
    GAMMA,
    INVERSE,
    SHIFT,
    LOGITS,
    X,
    SHARES,
    T,
    N: tl.constexpr,
    C: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """Grid (ceil(T / BT),): X [T,C] = mean of gate times Rh over the streams, SHARES [T,N] the gates' means over N."""
    token = tl.arange(0, BT)
    rows = tl.program_id(0) * BT + token
    inside = rows < T
    first = rows.to(tl.int64)[:, None]
    sums = ()
    for _ in tl.static_range(N):
        sums = sums + (tl.zeros([BT, BC], tl.float32),)
    for start in range(0, C, BC):
        cols = start + tl.arange(0, BC)[None, :]
        mask = inside[:, None] & (cols < C)
        x = tl.zeros([BT, BC], tl.float32)
        new = ()
        for i in tl.static_range(N):
            at = first * (N * C) + i * C + cols
            unit = tl.load(R + at, mask=mask, other=0.0).to(tl.float32)
            unit *= tl.load(SHIFT + rows * N + i, mask=inside, other=1.0)[:, None]
            unit *= tl.load(INVERSE + rows * N + i, mask=inside, other=0.0)[:, None]
            gate = tl.sigmoid(tl.load(LOGITS + at, mask=mask, other=0.0))
            x += gate * (unit * tl.load(GAMMA + i * C + cols, mask=cols < C, other=0.0))
            new = new + (sums[i] + tl.where(mask, gate, 0.0),)
        sums = new
        tl.store(X + first * C + cols, (x / N).to(X.dtype.element_ty), mask=mask)
    for i in tl.static_range(N):
        tl.store(SHARES + rows * N + i, tl.sum(sums[i], axis=1) / (N * C), mask=inside)


@triton.jit(do_not_specialize=["T"])
def gated_backward_gates(
    DX,
    R,
    GAMMA,
    INVERSE,
    SHIFT,
    LOGITS,
    DLOGITS,
    T,
    N: tl.constexpr,
    C: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """Grid (ceil(T / BT), N ceil(C / BC)): DLOGITS [T,N,C] from DX [T,C]."""
    CHUNKS: tl.constexpr = (C + BC - 1) // BC
    token = tl.arange(0, BT)
    rows = tl.program_id(0) * BT + token
    stream = tl.program_id(1) // CHUNKS
    cols = (tl.program_id(1) % CHUNKS) * BC + tl.arange(0, BC)[None, :]
    inside = rows < T
    mask = inside[:, None] & (cols < C)
    first = rows.to(tl.int64)[:, None]
    at = first * (N * C) + stream * C + cols
    unit = tl.load(R + at, mask=mask, other=0.0).to(tl.float32)
    unit *= tl.load(SHIFT + rows * N + stream, mask=inside, other=1.0)[:, None]
    unit *= tl.load(INVERSE + rows * N + stream, mask=inside, other=0.0)[:, None]
    normed = unit * tl.load(GAMMA + stream * C + cols, mask=cols < C, other=0.0)
    gate = tl.sigmoid(tl.load(LOGITS + at, mask=mask, other=0.0))
    dx = tl.load(DX + first * C + cols, mask=mask, other=0.0).to(tl.float32) / N
    tl.store(DLOGITS + at, dx * normed * gate * (1.0 - gate), mask=mask)


@triton.jit(do_not_specialize=["T"])
def gated_backward_streams(
    DX,
    R,
    GAMMA,
    INVERSE,
    SHIFT,
    LOGITS,
    DRH,
    DR_IN,
    DR,
    DGAMMA,
    T,
    N: tl.constexpr,
    C: tl.constexpr,
    HAS_DR: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """Grid (ceil(T / BT), N): DR [T,N,C] of a stream, through its norm, of DRH [T,N,C] (what the projections' gradient
    gives Rh) and gate DX / N, and on top DR_IN; DGAMMA [programs, N, C] holds the programs' parts."""
    token = tl.arange(0, BT)
    block = tl.program_id(0)
    rows = block * BT + token
    stream = tl.program_id(1)
    inside = rows < T
    first = rows.to(tl.int64)[:, None]
    base = first * (N * C) + stream * C
    inverse = tl.load(INVERSE + rows * N + stream, mask=inside, other=0.0)[:, None]
    shift = tl.load(SHIFT + rows * N + stream, mask=inside, other=1.0)[:, None]
    sums = tl.zeros([BT, BC], tl.float32)
    for start in range(0, C, BC):
        cols = start + tl.arange(0, BC)[None, :]
        mask = inside[:, None] & (cols < C)
        unit = tl.load(R + base + cols, mask=mask, other=0.0).to(tl.float32) * shift * inverse
        gate = tl.sigmoid(tl.load(LOGITS + base + cols, mask=mask, other=0.0))
        dx = tl.load(DX + first * C + cols, mask=mask, other=0.0).to(tl.float32) / N
        d = unit * (tl.load(DRH + base + cols, mask=mask, other=0.0) + gate * dx)
        own = DGAMMA + block.to(tl.int64) * (N * C) + stream * C + cols
        tl.store(own, tl.sum(d, axis=0, keep_dims=True), mask=cols < C)
        sums += d * tl.load(GAMMA + stream * C + cols, mask=cols < C, other=0.0)
    along = tl.sum(sums, axis=1)[:, None] / C
    for start in range(0, C, BC):
        cols = start + tl.arange(0, BC)[None, :]
        mask = inside[:, None] & (cols < C)
        unit = tl.load(R + base + cols, mask=mask, other=0.0).to(tl.float32) * shift * inverse
        gate = tl.sigmoid(tl.load(LOGITS + base + cols, mask=mask, other=0.0))
        dx = tl.load(DX + first * C + cols, mask=mask, other=0.0).to(tl.float32) / N
        d = tl.load(DRH + base + cols, mask=mask, other=0.0) + gate * dx
        d = d * tl.load(GAMMA + stream * C + cols, mask=cols < C, other=0.0) - unit * along
        d = d * inverse * shift
        if HAS_DR:
            d += tl.load(DR_IN + base + cols, mask=mask, other=0.0).to(tl.float32)
        tl.store(DR + base + cols, d.to(DR.dtype.element_ty), mask=mask)
