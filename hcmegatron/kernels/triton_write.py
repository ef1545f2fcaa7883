"""Triton: the write of every connection, H'_o = sum_i res[o,i] H_i + post[o] dropout(y + bias)_o, and its
backward.

Streams are [T, N, C], contiguous; y is [T, R, C] with R = 1 (HC, mHC: all streams receive it) or N (FC: a
part each). A program holds the N streams of BT tokens by BC channels in registers: each element is read and
written once. Elements of C moved per token with n = 4: 9 forward, 14 backward. A tensor may have more than 2^31
elements: its block of tokens begins at a 64-bit scalar offset, within which 32 bits do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hcmegatron.kernels.triton_projection import times_phi


@triton.jit
def _keep(SEED, P, offsets):
    """1 / (1 - P) where an element survives dropout, 0 where not; a function of (seed, position) alone."""
    return tl.where(tl.rand(tl.load(SEED), offsets) >= P, 1.0 / (1.0 - P), 0.0)


@triton.jit
def _output(
    Y,
    BIAS,
    SEED,
    P,
    first,
    token,
    cols,
    mask,
    r: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """(dropout(y + bias), the dropout's factor) of row r of y, fp32 [BT, BC]; tokens first + token."""
    offsets = token[:, None] * (R * C) + cols[None, :]
    block = first * (R * C) + r * C
    y = tl.load(Y + block + offsets, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        y += tl.load(BIAS + r * C + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
    keep = tl.full(y.shape, 1.0, tl.float32)
    if DROPOUT:
        keep = _keep(SEED, P, (block + offsets).to(tl.uint32))
        y *= keep
    return y, keep


@triton.jit(do_not_specialize=["T", "P"])
def write_forward(
    H,
    Y,
    BIAS,
    SEED,
    POST,
    RES,
    OUT,
    T,
    P,
    N: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    IDENTITY: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """Grid (ceil(T / BT), ceil(C / BC)). post [T,N] and res [T,N,N] fp32; where IDENTITY, res is I and not read."""
    token = tl.arange(0, BT)
    rows = tl.program_id(0) * BT + token
    first = tl.program_id(0).to(tl.int64) * BT
    cols = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = rows < T
    mask = inside[:, None] & (cols < C)[None, :]
    base = token[:, None] * (N * C) + cols[None, :]
    h = ()
    for i in tl.static_range(N):
        h = h + (tl.load(H + (first * (N * C) + i * C) + base, mask=mask, other=0.0).to(tl.float32),)
    y, keep = _output(Y, BIAS, SEED, P, first, token, cols, mask, 0, R, C, HAS_BIAS, DROPOUT)
    for o in tl.static_range(N):
        if R > 1 and o > 0:
            y, keep = _output(Y, BIAS, SEED, P, first, token, cols, mask, o, R, C, HAS_BIAS, DROPOUT)
        out = tl.load(POST + rows * N + o, mask=inside, other=0.0)[:, None] * y
        if IDENTITY:
            out += h[o]
        else:
            for i in tl.static_range(N):
                out += tl.load(RES + rows * (N * N) + o * N + i, mask=inside, other=0.0)[:, None] * h[i]
        tl.store(OUT + (first * (N * C) + o * C) + base, out.to(OUT.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T", "P"])
def write_fold(
    H,
    Y,
    BIAS,
    SEED,
    POST,
    RES,
    OUT,
    PHI,
    PROJ,
    SQUARE,
    T,
    P,
    N: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    IDENTITY: tl.constexpr,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    V: tl.constexpr,
):
    """write_forward that also projects its result for the next read: PROJ [T,K] = H' phi and SQUARE [T] = sum
    H'^2.

    Grid (ceil(T / BT),). phi [N*C, K] fp32 of the next connection. The products are of H' as rounded to its
    dtype, so that the next read sees what it would have computed itself. Saves one read of the streams.
    """
    token = tl.arange(0, BT)
    rows = tl.program_id(0) * BT + token
    first = tl.program_id(0).to(tl.int64) * BT
    inside = rows < T
    columns = tl.arange(0, KP)
    projected = tl.zeros([BT, KP], tl.float32)
    square = tl.zeros([BT, BC // V], tl.float32)  # V neighbours, which one thread holds, are added at once
    for start in range(0, C, BC):
        cols = start + tl.arange(0, BC)
        mask = inside[:, None] & (cols < C)[None, :]
        base = token[:, None] * (N * C) + cols[None, :]
        h = ()
        for i in tl.static_range(N):
            h = h + (tl.load(H + (first * (N * C) + i * C) + base, mask=mask, other=0.0).to(tl.float32),)
        y, keep = _output(Y, BIAS, SEED, P, first, token, cols, mask, 0, R, C, HAS_BIAS, DROPOUT)
        for o in tl.static_range(N):
            if R > 1 and o > 0:
                y, keep = _output(Y, BIAS, SEED, P, first, token, cols, mask, o, R, C, HAS_BIAS, DROPOUT)
            out = tl.load(POST + rows * N + o, mask=inside, other=0.0)[:, None] * y
            if IDENTITY:
                out += h[o]
            else:
                for i in tl.static_range(N):
                    out += tl.load(RES + rows * (N * N) + o * N + i, mask=inside, other=0.0)[:, None] * h[i]
            rounded = out.to(OUT.dtype.element_ty)
            tl.store(OUT + (first * (N * C) + o * C) + base, rounded, mask=mask)
            out = tl.where(mask, rounded.to(tl.float32), 0.0)
            square += tl.sum(tl.reshape(out * out, [BT, BC // V, V]), axis=2)
            weights = (cols < C)[:, None] & (columns < K)[None, :]
            phi = tl.load(PHI + (o * C + cols)[:, None] * K + columns[None, :], mask=weights, other=0.0)
            projected = times_phi(out.to(rounded.dtype), phi, projected, PRECISION)
    tl.store(
        PROJ + rows[:, None] * K + columns[None, :], projected, mask=inside[:, None] & (columns < K)[None, :]
    )
    tl.store(SQUARE + rows, tl.sum(square, axis=1), mask=inside)


@triton.jit(do_not_specialize=["T", "P"])
def write_backward(
    DOUT,
    H,
    Y,
    BIAS,
    SEED,
    POST,
    RES,
    DH,
    DY,
    DPOST,
    DRES,
    T,
    P,
    N: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DROPOUT: tl.constexpr,
    IDENTITY: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    V: tl.constexpr,
):
    """Grid (ceil(T / BT),): DH = res^T DOUT, DY = post . DOUT, DPOST [T,N] and DRES [T,N,N] summed over C. Where
    IDENTITY, DH is DOUT: H, RES, DH and DRES are left alone.

    The sums over C stay spread over BC / V lanes until the end: V neighbours, which one thread holds, are
    added at every step, the rest is reduced once. One program owns a token, so no atomics and one order of
    summation.
    """
    token = tl.arange(0, BT)
    rows = tl.program_id(0) * BT + token
    first = tl.program_id(0).to(tl.int64) * BT
    inside = rows < T
    post, res, dpost, dres = (), (), (), ()
    for o in tl.static_range(N):
        post = post + (tl.load(POST + rows * N + o, mask=inside, other=0.0),)
        dpost = dpost + (tl.zeros([BT, BC // V], tl.float32),)
        if not IDENTITY:
            for i in tl.static_range(N):
                res = res + (tl.load(RES + rows * (N * N) + o * N + i, mask=inside, other=0.0),)
                dres = dres + (tl.zeros([BT, BC // V], tl.float32),)
    for start in range(0, C, BC):
        cols = start + tl.arange(0, BC)
        mask = inside[:, None] & (cols < C)[None, :]
        base = token[:, None] * (N * C) + cols[None, :]
        ybase = token[:, None] * (R * C) + cols[None, :]
        h, d = (), ()
        for i in tl.static_range(N):
            if not IDENTITY:
                h = h + (tl.load(H + (first * (N * C) + i * C) + base, mask=mask, other=0.0).to(tl.float32),)
            d = d + (tl.load(DOUT + (first * (N * C) + i * C) + base, mask=mask, other=0.0).to(tl.float32),)
        y, keep = _output(Y, BIAS, SEED, P, first, token, cols, mask, 0, R, C, HAS_BIAS, DROPOUT)
        dy = tl.zeros([BT, BC], tl.float32)
        new_dpost, new_dres = (), ()
        for o in tl.static_range(N):
            if R > 1:
                if o > 0:
                    y, keep = _output(Y, BIAS, SEED, P, first, token, cols, mask, o, R, C, HAS_BIAS, DROPOUT)
                dy = post[o][:, None] * d[o] * keep
                tl.store(DY + (first * (R * C) + o * C) + ybase, dy.to(DY.dtype.element_ty), mask=mask)
            else:
                dy += post[o][:, None] * d[o]
            new_dpost = new_dpost + (dpost[o] + tl.sum(tl.reshape(d[o] * y, [BT, BC // V, V]), axis=2),)
            if not IDENTITY:
                for i in tl.static_range(N):
                    part = tl.sum(tl.reshape(d[o] * h[i], [BT, BC // V, V]), axis=2)
                    new_dres = new_dres + (dres[o * N + i] + part,)
        if R == 1:
            tl.store(DY + first * (R * C) + ybase, (dy * keep).to(DY.dtype.element_ty), mask=mask)
        if not IDENTITY:
            for i in tl.static_range(N):
                dh = res[i][:, None] * d[0]
                for o in tl.static_range(1, N):
                    dh += res[o * N + i][:, None] * d[o]
                tl.store(DH + (first * (N * C) + i * C) + base, dh.to(DH.dtype.element_ty), mask=mask)
        dpost = new_dpost
        dres = new_dres
    for o in tl.static_range(N):
        tl.store(DPOST + rows * N + o, tl.sum(dpost[o], axis=1), mask=inside)
        if not IDENTITY:
            for i in tl.static_range(N):
                tl.store(DRES + rows * (N * N) + o * N + i, tl.sum(dres[o * N + i], axis=1), mask=inside)
