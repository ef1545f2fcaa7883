"""Triton: mHC's read, forward and backward (2512.24880, Eq. 14-19).

Forward is one kernel: a program owns BT tokens, projects their streams on tensor cores while it sums their
squares, makes the coefficients (Sinkhorn in registers) and walks the streams a second time, out of L2, to
aggregate x. After a fold the projection is already there and only the aggregation is left. Backward is two
kernels, because phi's gradient is a sum over tokens and dx reaches the coefficients first:
`read_backward_coefficients` owns tokens (reads dx and H), `read_backward_streams` owns channels and walks
tokens (reads dx, H and the streams' gradient of the write, writes the streams' whole gradient, and keeps
phi's in registers). Elements of C moved per token with n = 4: 5 to 9 forward, 5 + 13 backward.
"""

from __future__ import annotations

import triton
import triton.language as tl

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
    SHIFTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(Hv phi [BT,KP], sums of squares [BT]) of BT tokens of W elements, multiplied by `shift` if SHIFTED."""
    columns = tl.arange(0, KP)
    projected = tl.zeros([BT, KP], tl.float32)
    squares = tl.zeros([BT, BC], tl.float32)
    for start in range(0, W, BC):
        at = start + tl.arange(0, BC)
        h = tl.load(H + base + at[None, :], mask=inside[:, None] & (at < W)[None, :], other=0.0)
        h = h.to(tl.float32)
        if SHIFTED:
            h *= shift[:, None]
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
def _vector(
    t, SCALE, BIAS, rows, inside, start: tl.constexpr, N: tl.constexpr, K: tl.constexpr, NP: tl.constexpr
):
    """(t, logits, scale) of the N columns of phi from `start`: [BT,NP], [BT,NP], [1,NP]. Scale is 0 in the
    padding."""
    at = tl.arange(0, NP)
    value = tl.load(
        t + rows[:, None] * K + start + at[None, :], mask=inside[:, None] & (at < N)[None, :], other=0.0
    )
    scale = tl.load(SCALE + start + at, mask=at < N, other=0.0)[None, :]
    bias = tl.load(BIAS + start + at, mask=at < N, other=0.0)[None, :]
    return value, value * scale + bias, scale


@triton.jit
def _entries(N: tl.constexpr, NP: tl.constexpr, TRANSPOSED: tl.constexpr):
    """(offset in a row-major n x n matrix, validity) of entry (a, b): [1,NP,NP]; (b, a) where transposed."""
    a = tl.arange(0, NP)[None, :, None]
    b = tl.arange(0, NP)[None, None, :]
    at = b * N + a if TRANSPOSED else a * N + b
    return at, (a < N) & (b < N)


@triton.jit
def _matrix(t, SCALE, BIAS, rows, inside, start: tl.constexpr, at, entry, outside, K: tl.constexpr):
    """The same for res: t and logits [BT,NP,NP], scale [1,NP,NP]; logits are `outside` in the padding."""
    valid = inside[:, None, None] & entry
    value = tl.load(t + rows[:, None, None] * K + start + at, mask=valid, other=0.0)
    scale = tl.load(SCALE + start + at, mask=entry, other=0.0)
    bias = tl.load(BIAS + start + at, mask=entry, other=0.0)
    return value, tl.where(entry, value * scale + bias, outside), scale


@triton.jit(do_not_specialize=["T"])
def read_forward(
    H,
    PHI,
    SCALE,
    BIAS,
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
        projected, square = _project(H, PHI, base, inside, shift, N * C, K, KP, BT, BC, False, PRECISION)
    scaled = inside & (_is_ordinary(square, N * C) == 0)
    if tl.max(scaled.to(tl.int32), axis=0) > 0:
        # rare: narrow tiles, so that registers and shared memory are those of the usual way
        NARROW: tl.constexpr = 32 if BC > 32 else BC
        size = tl.maximum(_largest(H, base, inside, N * C, BT, NARROW), FLOOR)
        shift = tl.where(scaled, _to_one(size), 1.0)
        again, squares = _project(H, PHI, base, inside, shift, N * C, K, KP, BT, NARROW, True, PRECISION)
        projected = tl.where(scaled[:, None], again, projected)
        square = tl.where(scaled, squares, square)
    inv_r = _inverse_rms(square, shift, N * C, RMS_EPS, EPS)
    tl.store(SHIFT + rows, shift, mask=inside)
    tl.store(INV_R + rows, inv_r, mask=inside)
    tl.store(TT + rows[:, None] * K + columns[None, :], projected * inv_r[:, None], mask=kmask)
    tl.debug_barrier()  # TT is read back in the shapes of pre, post and res

    vector = rows[:, None] * N + tl.arange(0, NP)[None, :]
    vmask = inside[:, None] & (tl.arange(0, NP) < N)[None, :]
    if USE_PRE:
        value, logits, scale = _vector(TT, SCALE, BIAS, rows, inside, 0, N, K, NP)
        tl.store(PRE + vector, tl.sigmoid(logits) + PRE_EPS, mask=vmask)
    else:
        tl.store(PRE + vector, tl.full([BT, NP], 1.0 / N, tl.float32), mask=vmask)
    if USE_POST:
        value, logits, scale = _vector(TT, SCALE, BIAS, rows, inside, N * USE_PRE, N, K, NP)
        tl.store(POST + vector, 2.0 * tl.sigmoid(logits), mask=vmask)
    else:
        tl.store(POST + vector, tl.full([BT, NP], 1.0, tl.float32), mask=vmask)
    out, entry = _entries(N, NP, TRANSPOSE_OUT)
    target = RES + rows[:, None, None] * (N * N) + out
    if USE_RES:
        at, entry = _entries(N, NP, TRANSPOSE_IN)
        outside = sinkhorn.padding(N, NP)
        value, logits, scale = _matrix(
            TT, SCALE, BIAS, rows, inside, N * USE_PRE + N * USE_POST, at, entry, outside, K
        )
        M = sinkhorn.forward(logits, entry, outside, ITERATIONS, SINKHORN_EPS)
    else:
        a = tl.arange(0, NP)
        M = tl.zeros([BT, NP, NP], tl.float32) + tl.where(a[None, :, None] == a[None, None, :], 1.0, 0.0)
    tl.store(target, M, mask=inside[:, None, None] & entry)
    tl.debug_barrier()  # PRE is read back, one stream at a time

    pre = ()
    for i in tl.static_range(N):
        pre = pre + (tl.load(PRE + rows * N + i, mask=inside, other=0.0)[:, None],)
    for start in range(0, C, BC):
        cols = start + tl.arange(0, BC)
        mask = inside[:, None] & (cols < C)[None, :]
        x = tl.zeros([BT, BC], tl.float32)
        for i in tl.static_range(N):
            x += pre[i] * tl.load(H + base + i * C + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(X + rows.to(tl.int64)[:, None] * C + cols[None, :], x.to(X.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def read_backward_coefficients(
    DX,
    H,
    TT,
    INV_R,
    SHIFT,
    SCALE,
    BIAS,
    DPRE,
    DPOST,
    DRES,
    DP,
    FACTOR,
    DSCALE,
    DBIAS,
    T,
    N: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    NP: tl.constexpr,
    IP: tl.constexpr,
    HAS_DPRE: tl.constexpr,
    HAS_DPOST: tl.constexpr,
    HAS_DRES: tl.constexpr,
    USE_PRE: tl.constexpr,
    USE_POST: tl.constexpr,
    USE_RES: tl.constexpr,
    ITERATIONS: tl.constexpr,
    SINKHORN_EPS: tl.constexpr,
    RMS_EPS: tl.constexpr,
    EPS: tl.constexpr,
    TRANSPOSE_IN: tl.constexpr,
    TRANSPOSE_OUT: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """Grid (ceil(T / BT),): from dx and the coefficients' gradients to DP [T,K], the gradient of Hv phi, and
    FACTOR [T], the factor of Hv in its own gradient through r, both for tokens multiplied by SHIFT; DSCALE and
    DBIAS [programs, K], summed by the caller."""
    program = tl.program_id(0)
    rows = program * BT + tl.arange(0, BT)
    inside = rows < T
    inv_r = tl.load(INV_R + rows, mask=inside, other=0.0)
    shift = tl.load(SHIFT + rows, mask=inside, other=1.0)
    along = tl.zeros([BT], tl.float32)  # sum_k dt t
    lane = tl.arange(0, NP)
    if USE_PRE:
        sums = ()
        for i in tl.static_range(N):
            sums = sums + (tl.zeros([BT, BC], tl.float32),)
        for start in range(0, C, BC):
            cols = start + tl.arange(0, BC)
            mask = inside[:, None] & (cols < C)[None, :]
            at = rows.to(tl.int64)[:, None] * C + cols[None, :]
            dx = tl.load(DX + at, mask=mask, other=0.0).to(tl.float32)
            new = ()
            for i in tl.static_range(N):
                at = rows.to(tl.int64)[:, None] * (N * C) + i * C + cols[None, :]
                new = new + (sums[i] + dx * tl.load(H + at, mask=mask, other=0.0).to(tl.float32),)
            sums = new
        dpre = tl.zeros([BT, NP], tl.float32)
        for i in tl.static_range(N):
            dpre = tl.where(lane[None, :] == i, tl.sum(sums[i], axis=1)[:, None], dpre)
        vmask = inside[:, None] & (lane < N)[None, :]
        if HAS_DPRE:
            dpre += tl.load(DPRE + rows[:, None] * N + lane[None, :], mask=vmask, other=0.0)
        t, logits, scale = _vector(TT, SCALE, BIAS, rows, inside, 0, N, K, NP)
        p = tl.sigmoid(logits)
        dl = tl.where(vmask, dpre * p * (1.0 - p), 0.0)
        along += tl.sum(dl * scale * t, axis=1)
        tl.store(DP + rows[:, None] * K + lane[None, :], dl * scale * inv_r[:, None], mask=vmask)
        tl.store(DSCALE + program * K + lane, tl.sum(dl * t, axis=0), mask=lane < N)
        tl.store(DBIAS + program * K + lane, tl.sum(dl, axis=0), mask=lane < N)
    if USE_POST:
        start_post: tl.constexpr = N * USE_PRE
        vmask = inside[:, None] & (lane < N)[None, :]
        t, logits, scale = _vector(TT, SCALE, BIAS, rows, inside, start_post, N, K, NP)
        dl = tl.zeros([BT, NP], tl.float32)
        if HAS_DPOST:
            p = tl.sigmoid(logits)
            dpost = tl.load(DPOST + rows[:, None] * N + lane[None, :], mask=vmask, other=0.0)
            dl = tl.where(vmask, dpost * 2.0 * p * (1.0 - p), 0.0)
        along += tl.sum(dl * scale * t, axis=1)
        tl.store(DP + rows[:, None] * K + start_post + lane[None, :], dl * scale * inv_r[:, None], mask=vmask)
        tl.store(DSCALE + program * K + start_post + lane, tl.sum(dl * t, axis=0), mask=lane < N)
        tl.store(DBIAS + program * K + start_post + lane, tl.sum(dl, axis=0), mask=lane < N)
    if USE_RES:
        start_res: tl.constexpr = N * USE_PRE + N * USE_POST
        at, entry = _entries(N, NP, TRANSPOSE_IN)
        mask3 = inside[:, None, None] & entry
        outside = sinkhorn.padding(N, NP)
        t, logits, scale = _matrix(TT, SCALE, BIAS, rows, inside, start_res, at, entry, outside, K)
        dl = tl.zeros([BT, NP, NP], tl.float32)
        if HAS_DRES:
            out, entry = _entries(N, NP, TRANSPOSE_OUT)
            dM = tl.load(DRES + rows[:, None, None] * (N * N) + out, mask=mask3, other=0.0)
            dl = sinkhorn.backward(logits, dM, entry, outside, ITERATIONS, IP, SINKHORN_EPS)
            dl = tl.where(mask3, dl, 0.0)
        along += tl.sum(tl.sum(dl * scale * t, axis=2), axis=1)
        dp = dl * scale * inv_r[:, None, None]
        tl.store(DP + rows[:, None, None] * K + start_res + at, dp, mask=mask3)
        tl.store(DSCALE + program * K + start_res + at, tl.sum(dl * t, axis=0, keep_dims=True), mask=entry)
        tl.store(DBIAS + program * K + start_res + at, tl.sum(dl, axis=0, keep_dims=True), mask=entry)
    if RMS_EPS == "added":
        r = 1.0 / tl.where(inside & (inv_r != 0.0), inv_r, 1.0) - EPS * shift
        factor = tl.where(r <= 0.0, 0.0, -along * inv_r / (tl.where(r <= 0.0, 1.0, r) * (N * C)))
    else:
        factor = -along * inv_r * inv_r / (N * C)
    tl.store(FACTOR + rows, factor, mask=inside)


@triton.jit(do_not_specialize=["T", "SPAN"])
def read_backward_streams(
    DX,
    DH_IN,
    H,
    PRE,
    DP,
    FACTOR,
    SHIFT,
    PHI,
    DH,
    DPHI,
    T,
    SPAN,
    N: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    G: tl.constexpr,
    HAS_DH: tl.constexpr,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """Grid (ceil(C / BC), N / G, splits): a program owns BC channels of G streams over SPAN tokens.

    DH = DH_IN + pre dx + shift (factor shift H + DP phi^T); DPHI [splits, N*C, K] holds each split's part of
    (shift H)^T DP, summed by the caller in one order.
    """
    cols = tl.program_id(0) * BC + tl.arange(0, BC)
    stream = tl.program_id(1) * G
    split = tl.program_id(2)
    columns = tl.arange(0, KP)
    channel = cols < C
    weights = channel[:, None] & (columns < K)[None, :]
    phi, dphi = (), ()
    for g in tl.static_range(G):
        w = ((stream + g) * C + cols)[:, None] * K + columns[None, :]
        phi = phi + (tl.trans(tl.load(PHI + w, mask=weights, other=0.0)),)
        dphi = dphi + (tl.zeros([BC, KP], tl.float32),)
    for start in range(split * SPAN, tl.minimum(split * SPAN + SPAN, T), BT):
        rows = start + tl.arange(0, BT)
        inside = rows < T
        mask = inside[:, None] & channel[None, :]
        kmask = inside[:, None] & (columns < K)[None, :]
        dp = tl.load(DP + rows[:, None] * K + columns[None, :], mask=kmask, other=0.0)
        shift = tl.load(SHIFT + rows, mask=inside, other=1.0)[:, None]
        factor = shift * tl.load(FACTOR + rows, mask=inside, other=0.0)[:, None]
        dp_own = dp * shift
        dx = tl.load(DX + rows.to(tl.int64)[:, None] * C + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        new = ()
        for g in tl.static_range(G):
            at = rows.to(tl.int64)[:, None] * (N * C) + (stream + g) * C + cols[None, :]
            h = tl.load(H + at, mask=mask, other=0.0).to(tl.float32) * shift
            pre = tl.load(PRE + rows * N + stream + g, mask=inside, other=0.0)[:, None]
            dh = pre * dx + factor * h
            if HAS_DH:
                dh += tl.load(DH_IN + at, mask=mask, other=0.0).to(tl.float32)
            dh = tl.dot(dp_own, phi[g], dh, input_precision=PRECISION)
            tl.store(DH + at, dh.to(DH.dtype.element_ty), mask=mask)
            new = new + (tl.dot(tl.trans(h), dp, dphi[g], input_precision=PRECISION),)
        dphi = new
    for g in tl.static_range(G):
        w = ((stream + g) * C + cols)[:, None] * K + columns[None, :]
        tl.store(DPHI + split.to(tl.int64) * (N * C * K) + w, dphi[g], mask=weights)
