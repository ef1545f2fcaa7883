"""Triton: mHC's read, forward (2512.24880, Eq. 14-19).

One kernel: a program owns BT tokens, projects their streams on tensor cores while it sums their squares, makes the
coefficients (Sinkhorn in registers) and walks the streams a second time to aggregate x. After a fold the projection is
already there and only the aggregation is left. Elements of C moved per token with n = 4: 5 after a fold, 9 without.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hcmegatron.kernels import triton_coefficients as coefficients
from hcmegatron.kernels import triton_sinkhorn as sinkhorn

# Mean squares between which a token is taken as it is; others are scaled, see hcmegatron/kernels/rms.py.
SMALLEST = tl.constexpr(2.0**-80)
LARGEST = tl.constexpr(2.0**80)


@triton.jit
def _inverse_rms(square, shift, W: tl.constexpr, RMS_EPS: tl.constexpr, EPS: tl.constexpr):
    """1 / r of Eq. 15 from the sum of W squares of a token times `shift`; 0 for zeros without epsilon."""
    mean = square / W
    if RMS_EPS == "inside":
        r = tl.sqrt_rn(mean + EPS * shift * shift)
    elif RMS_EPS == "added":
        r = tl.sqrt_rn(mean) + EPS * shift
    else:
        r = tl.sqrt_rn(mean)
    return tl.where(r == 0.0, 0.0, 1.0 / tl.where(r == 0.0, 1.0, r))


@triton.jit
def _is_ordinary(square, W: tl.constexpr):
    """Whether sums of W squares are exact in fp32 and far from its ends. False for NaN."""
    return (square > W * SMALLEST) & (square < W * LARGEST)


@triton.jit
def _to_one(size):
    """The power of two that brings a size near 1, where it is one in fp32: its exponent with the other sign."""
    size = tl.minimum(tl.maximum(size, 2.0**-126), 2.0**125)
    return ((254 << 23) - (size.to(tl.int32, bitcast=True) & 0x7F800000)).to(tl.float32, bitcast=True)


@triton.jit
def _project(
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
    V: tl.constexpr,
    SHIFTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(Hv phi [BT,KP], sums of squares [BT]) of BT tokens of W elements, multiplied by `shift` if SHIFTED."""
    columns = tl.arange(0, KP)
    projected = tl.zeros([BT, KP], tl.float32)
    squares = tl.zeros([BT, BC // V], tl.float32)  # V neighbours, which one thread holds, are added at once
    for start in range(0, W, BC):
        at = start + tl.arange(0, BC)
        h = tl.load(H + base + at[None, :], mask=inside[:, None] & (at < W)[None, :], other=0.0)
        h = h.to(tl.float32)
        if SHIFTED:
            h *= shift[:, None]
        weights = (at < W)[:, None] & (columns < K)[None, :]
        phi = tl.load(PHI + at[:, None] * K + columns[None, :], mask=weights, other=0.0)
        projected = tl.dot(h, phi, projected, input_precision=PRECISION)
        squares += tl.sum(tl.reshape(h * h, [BT, BC // V, V]), axis=2)
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
def _aggregate(
    H,
    X,
    TT,
    SCALE,
    BIAS,
    PRE,
    rows,
    inside,
    N: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    NP: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    USE_PRE: tl.constexpr,
    PRE_EPS: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """PRE of BT tokens, and with it their X."""
    lane = tl.arange(0, NP)[None, :]
    made = tl.full([BT, NP], 1.0 / N, tl.float32)
    if USE_PRE:
        value, logits, scale = coefficients.vector(TT, SCALE, BIAS, rows, inside, 0, N, K, NP, SCALE_STRIDE)
        made = tl.sigmoid(logits) + PRE_EPS
    tl.store(PRE + rows[:, None] * N + lane, made, mask=inside[:, None] & (lane < N))
    tl.debug_barrier()  # PRE is read back, one stream at a time
    pre = ()
    for i in tl.static_range(N):
        pre = pre + (tl.load(PRE + rows * N + i, mask=inside, other=0.0)[:, None],)
    token = tl.arange(0, BT)[:, None]
    first = tl.program_id(0).to(tl.int64) * BT
    for start in range(0, C, BC):
        cols = start + tl.arange(0, BC)[None, :]
        mask = inside[:, None] & (cols < C)
        x = tl.zeros([BT, BC], tl.float32)
        for i in tl.static_range(N):
            at = H + (first * (N * C) + i * C) + (token * (N * C) + cols)
            x += pre[i] * tl.load(at, mask=mask, other=0.0).to(tl.float32)
        tl.store(X + first * C + (token * C + cols), x.to(X.dtype.element_ty), mask=mask)


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
    SCALE_STRIDE: tl.constexpr,
    USE_RES: tl.constexpr,
    ITERATIONS: tl.constexpr,
    SINKHORN_EPS: tl.constexpr,
    TRANSPOSE_IN: tl.constexpr,
    TRANSPOSE_OUT: tl.constexpr,
    BT: tl.constexpr,
):
    """RES of BT tokens."""
    out, entry = coefficients.entries(N, NP, TRANSPOSE_OUT)
    if USE_RES:
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
    SCALE_STRIDE: tl.constexpr,
    USE_PRE: tl.constexpr,
    USE_POST: tl.constexpr,
    USE_RES: tl.constexpr,
    ITERATIONS: tl.constexpr,
    SINKHORN_EPS: tl.constexpr,
    RMS_EPS: tl.constexpr,
    EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    PRE_EPS: tl.constexpr,
    TRANSPOSE_IN: tl.constexpr,
    TRANSPOSE_OUT: tl.constexpr,
    FOLDED: tl.constexpr,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
    V: tl.constexpr,
):
    """Grid (ceil(T / BT),). Writes X [T,C], TT [T,K] = (Hv phi) / r, PRE [T,N], POST [T,N], RES [T,N,N], and
    SHIFT [T], the power of two by which a token was multiplied (1 unless its squares would leave fp32's
    range), with INV_R [T] = 1 / r of the token so multiplied."""
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    inside = rows < T
    base = rows.to(tl.int64)[:, None] * (N * C)
    columns = tl.arange(0, KP)
    kmask = inside[:, None] & (columns < K)[None, :]
    shift = tl.full([BT], 1.0, tl.float32)
    if FOLDED:
        projected = tl.load(PROJ + rows[:, None] * K + columns[None, :], mask=kmask, other=0.0)
        square = tl.load(SQUARE + rows, mask=inside, other=0.0)
    else:
        projected, square = _project(H, PHI, base, inside, shift, N * C, K, KP, BT, BC, V, False, PRECISION)
    scaled = inside & (_is_ordinary(square, N * C) == 0)
    if tl.max(scaled.to(tl.int32), axis=0) > 0:
        # rare: narrow tiles, so that registers and shared memory are those of the usual way
        NARROW: tl.constexpr = 32 if BC > 32 else BC
        size = tl.maximum(_largest(H, base, inside, N * C, BT, NARROW), FLOOR)
        shift = tl.where(scaled, _to_one(size), 1.0)
        again, squares = _project(H, PHI, base, inside, shift, N * C, K, KP, BT, NARROW, V, True, PRECISION)
        projected = tl.where(scaled[:, None], again, projected)
        square = tl.where(scaled, squares, square)
    inv_r = _inverse_rms(square, shift, N * C, RMS_EPS, EPS)
    tl.store(SHIFT + rows, shift, mask=inside)
    tl.store(INV_R + rows, inv_r, mask=inside)
    tl.store(TT + rows[:, None] * K + columns[None, :], projected * inv_r[:, None], mask=kmask)
    tl.debug_barrier()  # TT is read back in the shapes of pre, post and res

    first = coefficients.res_comes_first(tl.program_id(0))
    for turn in range(2):
        if turn == first:
            _aggregate(
                H,
                X,
                TT,
                SCALE_PRE,
                BIAS_PRE,
                PRE,
                rows,
                inside,
                N,
                C,
                K,
                NP,
                SCALE_STRIDE,
                USE_PRE,
                PRE_EPS,
                BT,
                BC,
            )
        else:
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
                SCALE_STRIDE,
                USE_RES,
                ITERATIONS,
                SINKHORN_EPS,
                TRANSPOSE_IN,
                TRANSPOSE_OUT,
                BT,
            )
    lane = tl.arange(0, NP)[None, :]
    post = tl.full([BT, NP], 1.0, tl.float32)
    if USE_POST:
        value, logits, scale = coefficients.vector(
            TT, SCALE_POST, BIAS_POST, rows, inside, N * USE_PRE, N, K, NP, SCALE_STRIDE
        )
        post = 2.0 * tl.sigmoid(logits)
    tl.store(POST + rows[:, None] * N + lane, post, mask=inside[:, None] & (lane < N))
