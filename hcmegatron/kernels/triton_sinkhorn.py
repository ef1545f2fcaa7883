"""Triton: Sinkhorn-Knopp and its backward in registers, in log space, for BT tokens at a time.

Matrices are [BT, NP, NP], NP the power of two at or above n. Axis 1 is summed first, axis 2 last. The map and
its epsilons: hcmegatron/connections/sinkhorn.py.

The padding is a matrix of its own beside the n x n one: logits of 0 among themselves, and of -infinity, which
exp() turns into zero, between the two. So no sum of the n x n matrix sees the padding, no sum of the padding
is zero, and a row without a finite logit, which has no normalised form, comes out as NaN as it does in torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG_EPS = tl.constexpr(-13.815510557964274)  # log 1e-6


@triton.jit
def padding(N: tl.constexpr, NP: tl.constexpr):
    """Logits [1,NP,NP] that hold entries outside the n x n matrix."""
    a = tl.arange(0, NP)[None, :, None] < N
    b = tl.arange(0, NP)[None, None, :] < N
    return tl.where(a == b, 0.0, float("-inf"))


@triton.jit
def _log_add(a, b):
    m = tl.maximum(a, b)
    return m + tl.log(tl.exp(a - m) + tl.exp(b - m))


@triton.jit
def _log_sum(L, axis: tl.constexpr, EPS: tl.constexpr):
    """Logarithm of the sums that entries are divided by."""
    m = tl.max(L, axis=axis, keep_dims=True)
    s = m + tl.log(tl.sum(tl.exp(L - m), axis=axis, keep_dims=True))
    if EPS == "additive":
        s = _log_add(s, tl.full(s.shape, LOG_EPS, tl.float32))
    if EPS == "clamp":
        # the sums of a row of -infinity are zero here, not undefined: the floor takes their place
        s = tl.where(m == float("-inf"), m, s)
        s = tl.maximum(s, tl.full(s.shape, LOG_EPS, tl.float32), propagate_nan=tl.PropagateNan.ALL)
    return s


@triton.jit
def _softmax(L, axis: tl.constexpr):
    e = tl.exp(L - tl.max(L, axis=axis, keep_dims=True))
    return e / tl.sum(e, axis=axis, keep_dims=True)


@triton.jit
def first(L, valid, outside, EPS: tl.constexpr):
    """The first normalisation, over axis 1, of logits L; where EPS is additive, with it added to the
    result."""
    L = L - _log_sum(L, 1, "none")
    if EPS == "additive":
        L = _log_add(L, tl.full(L.shape, LOG_EPS, tl.float32))
    return tl.where(valid, L, outside)


@triton.jit
def last(L, valid, EPS: tl.constexpr):
    """The last normalisation, over axis 2, out of log space; without epsilon as a softmax, whose rows sum to
    1."""
    if EPS == "none":
        M = _softmax(L, 2)
    else:
        M = tl.exp(L - _log_sum(L, 2, EPS))
    return tl.where(valid, M, 0.0)


@triton.jit
def forward(L, valid, outside, ITERATIONS: tl.constexpr, EPS: tl.constexpr):
    """Logits [BT,NP,NP], `outside` (see `padding`) outside `valid` -> matrices, zero there."""
    L = first(L, valid, outside, EPS)
    for _ in range(ITERATIONS - 1):
        L = tl.where(valid, L - _log_sum(L, 2, EPS), outside)
        L = tl.where(valid, L - _log_sum(L, 1, EPS), outside)
    return last(L, valid, EPS)


@triton.jit
def _through(L, gl, s, axis: tl.constexpr, EPS: tl.constexpr):
    """Gradient of a matrix's logarithm through one normalisation, L its result and s its log-sums."""
    pulled = tl.sum(gl, axis=axis, keep_dims=True)
    if EPS == "clamp":  # a clamped sum is a constant
        pulled = tl.where(s == LOG_EPS, 0.0, pulled)
    return gl - tl.exp(L) * pulled


@triton.jit
def backward(logits, dM, valid, outside, ITERATIONS: tl.constexpr, IP: tl.constexpr, EPS: tl.constexpr):
    """Gradient of the logits. IP: power of two at or above ITERATIONS.

    Recomputes the iterations and keeps their log-sums, 2 n a step, on chip; the iterates are rebuilt from the
    last to the first by adding those back.
    """
    BT: tl.constexpr = logits.shape[0]
    NP: tl.constexpr = logits.shape[1]
    at_row = tl.arange(0, IP)[None, None, :]
    at_column = tl.arange(0, IP)[None, :, None]
    row_sums = tl.zeros([BT, NP, IP], tl.float32)
    column_sums = tl.zeros([BT, IP, NP], tl.float32)
    L = first(logits, valid, outside, EPS)
    for k in range(ITERATIONS - 1):
        rows = _log_sum(L, 2, EPS)
        row_sums = tl.where(at_row == k, rows, row_sums)
        L = tl.where(valid, L - rows, outside)
        columns = _log_sum(L, 1, EPS)
        column_sums = tl.where(at_column == k, columns, column_sums)
        L = tl.where(valid, L - columns, outside)
    rows = _log_sum(L, 2, EPS)
    L = tl.where(valid, L - rows, outside)
    gl = _through(L, tl.where(valid, dM, 0.0) * tl.exp(L), rows, 2, EPS)
    L = tl.where(valid, L + rows, outside)
    for step in range(ITERATIONS - 1):
        k = ITERATIONS - 2 - step
        columns = tl.sum(tl.where(at_column == k, column_sums, 0.0), axis=1, keep_dims=True)
        gl = _through(L, gl, columns, 1, EPS)
        L = tl.where(valid, L + columns, outside)
        rows = tl.sum(tl.where(at_row == k, row_sums, 0.0), axis=2, keep_dims=True)
        gl = _through(L, gl, rows, 2, EPS)
        L = tl.where(valid, L + rows, outside)
    P = _softmax(logits, 1)
    if EPS == "additive":
        gl = gl * P * tl.exp(-tl.where(valid, L, 0.0))
    return tl.where(valid, gl - P * tl.sum(gl, axis=1, keep_dims=True), 0.0)
