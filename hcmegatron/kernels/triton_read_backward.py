"""Triton: mHC's read, backward: two kernels, because phi's gradient is a sum over tokens and dx reaches the
coefficients first, and a third that adds up what their programs have left.

`read_backward_coefficients` owns tokens (reads dx and H), `read_backward_streams` owns channels and walks tokens
(reads dx, H and the streams' gradient of the write, writes the streams' whole gradient, and keeps phi's in registers).
Elements of C moved per token with n = 4: 5 + 13.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hcmegatron.kernels import triton_coefficients as coefficients
from hcmegatron.kernels import triton_permutations as permutations
from hcmegatron.kernels import triton_sinkhorn as sinkhorn
from hcmegatron.kernels import triton_sinkhorn_implicit as implicit


@triton.jit
def _through_x(
    DX,
    H,
    inside,
    N: tl.constexpr,
    C: tl.constexpr,
    NP: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """The gradient of pre through x, dx . H_i [BT,NP]."""
    sums = ()
    for i in tl.static_range(N):
        sums = sums + (tl.zeros([BT, BC], tl.float32),)
    token = tl.arange(0, BT)[:, None]
    first = tl.program_id(0).to(tl.int64) * BT
    for start in range(0, C, BC):
        cols = start + tl.arange(0, BC)[None, :]
        mask = inside[:, None] & (cols < C)
        dx = tl.load(DX + first * C + (token * C + cols), mask=mask, other=0.0).to(tl.float32)
        new = ()
        for i in tl.static_range(N):
            at = H + (first * (N * C) + i * C) + (token * (N * C) + cols)
            new = new + (sums[i] + dx * tl.load(at, mask=mask, other=0.0).to(tl.float32),)
        sums = new
    lane = tl.arange(0, NP)[None, :]
    dpre = tl.zeros([BT, NP], tl.float32)
    for i in tl.static_range(N):
        dpre = tl.where(lane == i, tl.sum(sums[i], axis=1)[:, None], dpre)
    return dpre


@triton.jit
def _leave(
    DP,
    sums,
    dl,
    t,
    scale,
    inv_r,
    rows,
    mask,
    start: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    NP: tl.constexpr,
):
    """Of the gradient dl [BT,NP] of N logits from column `start` on, zero outside the mask: what DP and SUMS get, and
    sum_k dt t [BT]."""
    at = tl.arange(0, NP)
    tl.store(DP + rows[:, None] * K + start + at[None, :], dl * scale * inv_r[:, None], mask=mask)
    tl.store(sums + start + at, tl.sum(dl, axis=0), mask=at < N)
    tl.store(sums + K + start + at, tl.sum(dl * t, axis=0), mask=at < N)
    return tl.sum(dl * scale * t, axis=1)


@triton.jit(do_not_specialize=["T"])
def read_backward_coefficients(
    DX,
    H,
    TT,
    INV_R,
    SHIFT,
    SCALE_PRE,
    SCALE_POST,
    SCALE_RES,
    BIAS_PRE,
    BIAS_POST,
    BIAS_RES,
    DPRE,
    DPOST,
    DRES,
    DP,
    FACTOR,
    SUMS,
    T,
    N: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    NP: tl.constexpr,
    RC: tl.constexpr,
    RP: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    IP: tl.constexpr,
    HAS_DPRE: tl.constexpr,
    HAS_DPOST: tl.constexpr,
    HAS_DRES: tl.constexpr,
    IMPLICIT: tl.constexpr,
    USE_PRE: tl.constexpr,
    USE_POST: tl.constexpr,
    USE_RES: tl.constexpr,
    RES_MAP: tl.constexpr,
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
    FACTOR [T], the factor of Hv in its own gradient through r, both for tokens multiplied by SHIFT; SUMS
    [programs, 2, K], the programs' parts of the gradients of bias and of scale (one a column)."""
    program = tl.program_id(0)
    rows = program * BT + tl.arange(0, BT)
    inside = rows < T
    inv_r = tl.load(INV_R + rows, mask=inside, other=0.0)
    shift = tl.load(SHIFT + rows, mask=inside, other=1.0)
    lane = tl.arange(0, NP)
    vmask = inside[:, None] & (lane < N)[None, :]
    sums = SUMS + program * 2 * K
    along = tl.zeros([BT], tl.float32)  # sum_k dt t
    dpre = tl.zeros([BT, NP], tl.float32)
    first = coefficients.res_comes_first(program)
    for turn in range(2):
        if turn == first:
            if USE_PRE:
                dpre = _through_x(DX, H, inside, N, C, NP, BT, BC)
        else:
            start: tl.constexpr = N * USE_PRE + N * USE_POST
            if USE_RES and RES_MAP != "sinkhorn":
                t, logits, scale = coefficients.vector(
                    TT, SCALE_RES, BIAS_RES, rows, inside, start, RC, K, RP, SCALE_STRIDE
                )
                rmask = inside[:, None] & (tl.arange(0, RP) < RC)[None, :]
                dl = tl.zeros([BT, RP], tl.float32)
                if HAS_DRES:
                    out, entry = coefficients.entries(N, NP, False)
                    mask3 = inside[:, None, None] & entry
                    dM = tl.load(DRES + rows[:, None, None] * (N * N) + out, mask=mask3, other=0.0)
                    dl = tl.where(rmask, permutations.backward(logits, dM, N, NP, RC, RES_MAP), 0.0)
                along += _leave(DP, sums, dl, t, scale, inv_r, rows, rmask, start, RC, K, RP)
            elif USE_RES:
                at, entry = coefficients.entries(N, NP, TRANSPOSE_IN)
                mask3 = inside[:, None, None] & entry
                outside = sinkhorn.padding(N, NP)
                t, logits, scale = coefficients.matrix(
                    TT, SCALE_RES, BIAS_RES, rows, inside, start, at, entry, outside, K, SCALE_STRIDE
                )
                dl = tl.zeros([BT, NP, NP], tl.float32)
                if HAS_DRES:
                    out, entry = coefficients.entries(N, NP, TRANSPOSE_OUT)
                    dM = tl.load(DRES + rows[:, None, None] * (N * N) + out, mask=mask3, other=0.0)
                    if IMPLICIT:
                        M = sinkhorn.forward(logits, entry, outside, ITERATIONS, SINKHORN_EPS)
                        dl = implicit.backward(M, dM, N)
                    else:
                        dl = sinkhorn.backward(logits, dM, entry, outside, ITERATIONS, IP, SINKHORN_EPS)
                    dl = tl.where(mask3, dl, 0.0)
                along += tl.sum(tl.sum(dl * scale * t, axis=2), axis=1)
                dp = dl * scale * inv_r[:, None, None]
                tl.store(DP + rows[:, None, None] * K + start + at, dp, mask=mask3)
                tl.store(sums + start + at, tl.sum(dl, axis=0, keep_dims=True), mask=entry)
                tl.store(sums + K + start + at, tl.sum(dl * t, axis=0, keep_dims=True), mask=entry)
    if USE_PRE:
        if HAS_DPRE:
            dpre += tl.load(DPRE + rows[:, None] * N + lane[None, :], mask=vmask, other=0.0)
        t, logits, scale = coefficients.vector(
            TT, SCALE_PRE, BIAS_PRE, rows, inside, 0, N, K, NP, SCALE_STRIDE
        )
        p = tl.sigmoid(logits)
        dl = tl.where(vmask, dpre * p * (1.0 - p), 0.0)
        along += _leave(DP, sums, dl, t, scale, inv_r, rows, vmask, 0, N, K, NP)
    if USE_POST:
        start_post: tl.constexpr = N * USE_PRE
        t, logits, scale = coefficients.vector(
            TT, SCALE_POST, BIAS_POST, rows, inside, start_post, N, K, NP, SCALE_STRIDE
        )
        dl = tl.zeros([BT, NP], tl.float32)
        if HAS_DPOST:
            p = tl.sigmoid(logits)
            dpost = tl.load(DPOST + rows[:, None] * N + lane[None, :], mask=vmask, other=0.0)
            dl = tl.where(vmask, dpost * 2.0 * p * (1.0 - p), 0.0)
        along += _leave(DP, sums, dl, t, scale, inv_r, rows, vmask, start_post, N, K, NP)
    if RMS_EPS == "added":
        r = 1.0 / tl.where(inside & (inv_r != 0.0), inv_r, 1.0) - EPS * shift
        factor = tl.where(r <= 0.0, 0.0, -along * inv_r / (tl.where(r <= 0.0, 1.0, r) * (N * C)))
    elif RMS_EPS == "off":
        factor = tl.zeros([BT], tl.float32)
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
    STAGES: tl.constexpr,
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
    # offsets within a tile fit 32 bits and stay; a block of tokens is a scalar further on
    token = tl.arange(0, BT)
    at = token[:, None] * (N * C) + cols[None, :]
    for start in tl.range(split * SPAN, tl.minimum(split * SPAN + SPAN, T), BT, num_stages=STAGES):
        rows = start + token
        inside = rows < T
        mask = inside[:, None] & channel[None, :]
        kmask = inside[:, None] & (columns < K)[None, :]
        dp = tl.load(DP + rows[:, None] * K + columns[None, :], mask=kmask, other=0.0)
        shift = tl.load(SHIFT + rows, mask=inside, other=1.0)[:, None]
        factor = shift * tl.load(FACTOR + rows, mask=inside, other=0.0)[:, None]
        dp_own = dp * shift
        first = tl.cast(start, tl.int64)
        dx = tl.load(DX + first * C + token[:, None] * C + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        new = ()
        for g in tl.static_range(G):
            block = first * (N * C) + (stream + g) * C
            h = tl.load(H + block + at, mask=mask, other=0.0)
            pre = tl.load(PRE + rows * N + stream + g, mask=inside, other=0.0)[:, None]
            dh = pre * dx + factor * (h.to(tl.float32) * shift)
            if HAS_DH:
                dh += tl.load(DH_IN + block + at, mask=mask, other=0.0).to(tl.float32)
            dh = tl.dot(dp_own, phi[g], dh, input_precision=PRECISION)
            tl.store(DH + block + at, dh.to(DH.dtype.element_ty), mask=mask)
            # loaded a second time, out of L2: the pipeline fetches ahead only what has one use
            ht = tl.load(H + block + tl.trans(at), mask=tl.trans(mask), other=0.0).to(tl.float32)
            new = new + (tl.dot(ht * tl.trans(shift), dp, dphi[g], input_precision=PRECISION),)
        dphi = new
    for g in tl.static_range(G):
        w = ((stream + g) * C + cols)[:, None] * K + columns[None, :]
        tl.store(DPHI + split.to(tl.int64) * (N * C * K) + w, dphi[g], mask=weights)


@triton.jit(do_not_specialize=["splits", "programs"])
def read_backward_sums(
    DPHI_PARTS,
    SUMS,
    DPHI,
    DBIAS,
    DSCALE,
    splits,
    programs,
    W: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    SCALE_STRIDE: tl.constexpr,
    USE_PRE: tl.constexpr,
    USE_POST: tl.constexpr,
    USE_RES: tl.constexpr,
    BT: tl.constexpr,
    BC: tl.constexpr,
):
    """Grid (1 + ceil(W / BC),) with W = N C K: what the two other kernels left in parts, each in one order.

    The first program sums SUMS [programs, 2, K] to DBIAS [K] and DSCALE, [K] or, where a scale is one number a part,
    one after the other in the order pre, post, res. The others sum DPHI_PARTS [splits, W] to DPHI [W]; they are not
    there where one split holds it all.
    """
    program = tl.program_id(0)
    if program == 0:
        columns = tl.arange(0, KP)
        dbias = tl.zeros([BT, KP], tl.float32)
        dscale = tl.zeros([BT, KP], tl.float32)
        for start in range(0, programs, BT):
            rows = start + tl.arange(0, BT)
            mask = (rows < programs)[:, None] & (columns < K)[None, :]
            at = SUMS + rows[:, None] * (2 * K) + columns[None, :]
            dbias += tl.load(at, mask=mask, other=0.0)
            dscale += tl.load(at + K, mask=mask, other=0.0)
        tl.store(DBIAS + columns, tl.sum(dbias, axis=0), mask=columns < K)
        of_columns = tl.sum(dscale, axis=0)
        if SCALE_STRIDE == 1:
            tl.store(DSCALE + columns, of_columns, mask=columns < K)
        else:
            end_pre: tl.constexpr = N * USE_PRE
            end_post: tl.constexpr = end_pre + N * USE_POST
            if USE_PRE:
                tl.store(DSCALE, tl.sum(tl.where(columns < end_pre, of_columns, 0.0), axis=0))
            if USE_POST:
                of_post = (columns >= end_pre) & (columns < end_post)
                tl.store(DSCALE + USE_PRE, tl.sum(tl.where(of_post, of_columns, 0.0), axis=0))
            if USE_RES:
                of_res = tl.sum(tl.where(columns >= end_post, of_columns, 0.0), axis=0)
                tl.store(DSCALE + USE_PRE + USE_POST, of_res)
    else:
        at = (program - 1) * BC + tl.arange(0, BC)
        total = tl.zeros([BC], tl.float32)
        for split in tl.range(0, splits, loop_unroll_factor=8):  # loads of several under way
            total += tl.load(DPHI_PARTS + tl.cast(split, tl.int64) * W + at, mask=at < W, other=0.0)
        tl.store(DPHI + at, total, mask=at < W)
