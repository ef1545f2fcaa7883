"""Triton: mHC's read, forward (2512.24880, Eq. 14-19), from the projection on (triton_projection.py, or a fold):
coefficients, Sinkhorn in registers, and the aggregation of x. Elements of C moved per token with n = 4: 5.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hcmegatron.kernels import triton_coefficients as coefficients
from hcmegatron.kernels import triton_permutations as permutations
from hcmegatron.kernels import triton_rms as rms
from hcmegatron.kernels import triton_sinkhorn as sinkhorn


@triton.jit
def _inverse_rms(square, shift, W: tl.constexpr, RMS_EPS: tl.constexpr, EPS: tl.constexpr):
    """1 / r of Eq. 15 from the sum of W squares of a token times `shift`; 0 for zeros without epsilon. Where there is
    no division, what takes the shift back."""
    if RMS_EPS == "off":
        return 1.0 / shift
    mean = square / W
    if RMS_EPS == "inside":
        r = tl.sqrt_rn(mean + EPS * shift * shift)
    elif RMS_EPS == "added":
        r = tl.sqrt_rn(mean) + EPS * shift
    else:
        r = tl.sqrt_rn(mean)
    return tl.where(r == 0.0, 0.0, 1.0 / tl.where(r == 0.0, 1.0, r))


@triton.jit
def _scaled_projection(
    H,
    PHI,
    base,
    inside,
    shift,
    W: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(Hv phi [BT,KP], sums of squares [BT]) of BT tokens of W elements, multiplied by `shift`."""
    columns = tl.arange(0, KP)
    projected = tl.zeros([BT, KP], tl.float32)
    squares = tl.zeros([BT, BC], tl.float32)
    for start in range(0, W, BC):
        at = start + tl.arange(0, BC)
        h = tl.load(H + base + at[None, :], mask=inside[:, None] & (at < W)[None, :], other=0.0)
        h = h.to(tl.float32) * shift[:, None]
        weights = (at < W)[:, None] & (columns < K)[None, :]
        phi = tl.load(PHI + at[:, None] * K + columns[None, :], mask=weights, other=0.0)
        projected = tl.dot(h, phi, projected, input_precision=PRECISION)
        squares += h * h
    return projected, tl.sum(squares, axis=1)


@triton.jit
def _largest(H, base, inside, W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    """The largest size of an element [BT] of BT tokens of W elements."""
    sizes = tl.zeros([BT, BC], tl.float32)
    for start in range(0, W, BC):
        at = start + tl.arange(0, BC)
        h = tl.load(H + base + at[None, :], mask=inside[:, None] & (at < W)[None, :], other=0.0)
        sizes = tl.maximum(sizes, tl.abs(h.to(tl.float32)))
    return tl.max(sizes, axis=1)


@triton.jit
def _projection(
    H,
    PHI,
    PROJ,
    SQUARE,
    rows,
    inside,
    T,
    W: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    PARTS: tl.constexpr,
    RMS_EPS: tl.constexpr,
    EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    NARROW: tl.constexpr,
):
    """((Hv phi) / r [BT,KP], 1 / r [BT], shift [BT]) of BT tokens, out of the parts of PROJ and SQUARE."""
    columns = tl.arange(0, KP)
    mask = inside[:, None] & (columns < K)[None, :]
    projected = tl.zeros([BT, KP], tl.float32)
    square = tl.zeros([BT], tl.float32)
    for part in tl.static_range(PARTS):
        own = rows.to(tl.int64) + tl.cast(T, tl.int64) * part
        projected += tl.load(PROJ + own[:, None] * K + columns[None, :], mask=mask, other=0.0)
        square += tl.load(SQUARE + own, mask=inside, other=0.0)
    shift = tl.full([BT], 1.0, tl.float32)
    scaled = inside & (rms.is_ordinary(square, W) == 0)
    if tl.max(scaled.to(tl.int32), axis=0) > 0:
        # rare: narrow tiles, so that registers and shared memory are those of the usual way
        base = rows.to(tl.int64)[:, None] * W
        size = tl.maximum(_largest(H, base, inside, W, BT, NARROW), FLOOR)
        shift = tl.where(scaled, rms.to_one(size), 1.0)
        again, squares = _scaled_projection(H, PHI, base, inside, shift, W, K, KP, BT, NARROW, PRECISION)
        projected = tl.where(scaled[:, None], again, projected)
        square = tl.where(scaled, squares, square)
    inv_r = _inverse_rms(square, shift, W, RMS_EPS, EPS)
    return projected * inv_r[:, None], inv_r, shift


@triton.jit
def _pre(
    t,
    SCALE,
    BIAS,
    i: tl.constexpr,
    N: tl.constexpr,
    KP: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    USE_PRE: tl.constexpr,
    PRE_EPS: tl.constexpr,
    BT: tl.constexpr,
):
    """Entry i of pre [BT], out of t = (Hv phi) / r [BT,KP]."""
    if not USE_PRE:
        return tl.full([BT], 1.0 / N, tl.float32)
    own = tl.sum(tl.where(tl.arange(0, KP)[None, :] == i, t, 0.0), axis=1)
    return tl.sigmoid(own * tl.load(SCALE + i * SCALE_STRIDE) + tl.load(BIAS + i)) + PRE_EPS


@triton.jit
def _mixture(
    TT,
    SCALE,
    BIAS,
    RES,
    rows,
    inside,
    start: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    NP: tl.constexpr,
    RC: tl.constexpr,
    RP: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    USE_RES: tl.constexpr,
    RES_MAP: tl.constexpr,
    ITERATIONS: tl.constexpr,
    SINKHORN_EPS: tl.constexpr,
    TRANSPOSE_IN: tl.constexpr,
    TRANSPOSE_OUT: tl.constexpr,
    BT: tl.constexpr,
):
    """RES of BT tokens."""
    out, entry = coefficients.entries(N, NP, TRANSPOSE_OUT)
    if USE_RES and RES_MAP != "sinkhorn":
        value, logits, scale = coefficients.vector(
            TT, SCALE, BIAS, rows, inside, start, RC, K, RP, SCALE_STRIDE
        )
        M = permutations.forward(logits, N, NP, RC, RES_MAP)
    elif USE_RES:
        at, entry = coefficients.entries(N, NP, TRANSPOSE_IN)
        outside = sinkhorn.padding(N, NP)
        value, logits, scale = coefficients.matrix(
            TT, SCALE, BIAS, rows, inside, start, at, entry, outside, K, SCALE_STRIDE
        )
        M = sinkhorn.forward(logits, entry, outside, ITERATIONS, SINKHORN_EPS)
    else:
        a = tl.arange(0, NP)
        M = tl.zeros([BT, NP, NP], tl.float32) + tl.where(a[None, :, None] == a[None, None, :], 1.0, 0.0)
    target = RES + rows[:, None, None] * (N * N) + out
    tl.store(target, M, mask=inside[:, None, None] & entry)


@triton.jit(do_not_specialize=["T"])
def read_forward(
    H,
    PHI,
    SCALE_PRE,
    SCALE_POST,
    SCALE_RES,
    BIAS_PRE,
    BIAS_POST,
    BIAS_RES,
    PROJ,
    SQUARE,
    X,
    TT,
    INV_R,
    SHIFT,
    PRE,
    POST,
    RES,
    T,
    N: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    NP: tl.constexpr,
    RC: tl.constexpr,
    RP: tl.constexpr,
    PARTS: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    USE_PRE: tl.constexpr,
    USE_POST: tl.constexpr,
    USE_RES: tl.constexpr,
    RES_MAP: tl.constexpr,
    ITERATIONS: tl.constexpr,
    SINKHORN_EPS: tl.constexpr,
    RMS_EPS: tl.constexpr,
    EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    PRE_EPS: tl.constexpr,
    POST_EPS: tl.constexpr,
    TRANSPOSE_IN: tl.constexpr,
    TRANSPOSE_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """Grid (ceil(T / BT) (1 + ceil(C / BC)),). Of BT tokens the first program makes the coefficients, a chain of some
    hundred dependent steps that moves no memory, while the others aggregate BC channels each.

    Writes X [T,C], TT [T,K] = (Hv phi) / r, PRE [T,N], POST [T,N], RES [T,N,N], and SHIFT [T], the power of two by
    which a token was multiplied (1 unless its squares would leave fp32's range), with INV_R [T] = 1 / r of the token so
    multiplied.
    """
    CHUNKS: tl.constexpr = (C + BC - 1) // BC
    NARROW: tl.constexpr = 32 if BC > 32 else BC
    block = tl.program_id(0) // (1 + CHUNKS)
    chunk = tl.program_id(0) % (1 + CHUNKS) - 1
    token = tl.arange(0, BT)
    rows = block * BT + token
    inside = rows < T
    if chunk >= 0:
        cols = chunk * BC + tl.arange(0, BC)[None, :]
        mask = inside[:, None] & (cols < C)
        first = block.to(tl.int64) * BT
        h = ()  # on their way while pre is made
        for i in tl.static_range(N):
            at = H + (first * (N * C) + i * C) + (token[:, None] * (N * C) + cols)
            h = h + (tl.load(at, mask=mask, other=0.0),)
        x = tl.zeros([BT, BC], tl.float32)
        own, _, _ = _projection(
            H,
            PHI,
            PROJ,
            SQUARE,
            rows,
            inside,
            T,
            N * C,
            K,
            KP,
            PARTS,
            RMS_EPS,
            EPS,
            FLOOR,
            PRECISION,
            BT,
            NARROW,
        )
        for i in tl.static_range(N):
            share = _pre(own, SCALE_PRE, BIAS_PRE, i, N, KP, SCALE_STRIDE, USE_PRE, PRE_EPS, BT)
            x += share[:, None] * h[i].to(tl.float32)
        tl.store(X + first * C + (token[:, None] * C + cols), x.to(X.dtype.element_ty), mask=mask)
    else:
        t, inv_r, shift = _projection(
            H,
            PHI,
            PROJ,
            SQUARE,
            rows,
            inside,
            T,
            N * C,
            K,
            KP,
            PARTS,
            RMS_EPS,
            EPS,
            FLOOR,
            PRECISION,
            BT,
            NARROW,
        )
        columns = tl.arange(0, KP)
        tl.store(SHIFT + rows, shift, mask=inside)
        tl.store(INV_R + rows, inv_r, mask=inside)
        tl.store(TT + rows[:, None] * K + columns[None, :], t, mask=inside[:, None] & (columns < K)[None, :])
        for i in tl.static_range(N):
            pre = _pre(t, SCALE_PRE, BIAS_PRE, i, N, KP, SCALE_STRIDE, USE_PRE, PRE_EPS, BT)
            tl.store(PRE + rows * N + i, pre, mask=inside)
        tl.debug_barrier()  # TT is read back in the shapes of post and res
        lane = tl.arange(0, NP)[None, :]
        post = tl.full([BT, NP], 1.0, tl.float32)
        if USE_POST:
            value, logits, scale = coefficients.vector(
                TT, SCALE_POST, BIAS_POST, rows, inside, N * USE_PRE, N, K, NP, SCALE_STRIDE
            )
            post = 2.0 * tl.sigmoid(logits) + POST_EPS
        tl.store(POST + rows[:, None] * N + lane, post, mask=inside[:, None] & (lane < N))
        _mixture(
            TT,
            SCALE_RES,
            BIAS_RES,
            RES,
            rows,
            inside,
            N * USE_PRE + N * USE_POST,
            N,
            K,
            NP,
            RC,
            RP,
            SCALE_STRIDE,
            USE_RES,
            RES_MAP,
            ITERATIONS,
            SINKHORN_EPS,
            TRANSPOSE_IN,
            TRANSPOSE_OUT,
            BT,
        )
